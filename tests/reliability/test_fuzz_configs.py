"""Configs of any values and any bytes: taken, or refused in words; nothing in them is executed."""

import random
from collections import Counter
from pathlib import Path

import mlx_lm_lora.train as host
import pytest

from mlx_lm_lora_prefplus.host.config.checks.optimizers import build_optimizer
from mlx_lm_lora_prefplus.host.config.option_fields import option_fields
from mlx_lm_lora_prefplus.host.config.resolve import resolve
from mlx_lm_lora_prefplus.host.seam.install import activate
from mlx_lm_lora_prefplus.plugin.installed import registry
from mlx_lm_lora_prefplus.settings import DataSettings, RunSettings

from .fuzz import NUMBERS, TEXTS, told_or_fine

pytestmark = pytest.mark.slow

activate(host)

STRUCTURES = (
    *(
        [],
        [1],
        ["sigmoid"],
        ["sigmoid", "ipo"],
        [["a"]],
        [None],
        [{}],
        {},
        {"a": 1},
        {1: 2},
        {None: None},
        (1, 2),
        {1, 2},
    ),
    *({"rank": 8}, {"rank": "8"}, {"rank": 0}, {"rank": 10**11}, {"rank": 8, "keys": [1]}, {"scale": float("nan")}),
    *({"adam": {"betas": "x"}}, {"adam": {"betas": [1]}}, {"adam": {"eps": -1}}, {"muon": {"ns_steps": -4}}),
    *({"adamw": {"weight_decay": "x"}}, {"adam": None}, {"path": "x"}, [{"path": "x"}], b"bytes", object),
    *(
        {"name": name, "arguments": arguments}
        for name in ("cosine_decay", "step_decay", "exponential_decay", ["x"], "nothing")
        for arguments in ([1e-3, 10], [1e-3, 0], [1e-3, -5], ["x", 2], [1e-3, 0.5, 0], None)
    ),
)
VALUES = (*TEXTS, *NUMBERS, *STRUCTURES, "sigmoid", "ipo, hinge", "dpo", "adamw", "auto", "~nobody/x", "../../etc")
WORDS = (
    *(
        "!!python/object/apply:os.system ",
        "!!int",
        "!!binary",
        "!!timestamp",
        "&m",
        "*m",
        "<<:",
        "? ",
        "- ",
        "[",
        "]",
        "{",
    ),
    *("}", ": ", "\n", "\t", '"', "'", "|", "#", "%", "@", "\x00", "9" * 40, ".nan", ".inf", "1e999", "~", "\u2028"),
)
GOOD = """\
train_mode: dpo
model: &m some/model
reference_model_path: *m
lora_parameters: {rank: 8, dropout: 0.0, scale: 10.0}
lr_schedule:
  name: cosine_decay
  arguments: [1e-5, 600]
optimizer_config:
  adamw: {weight_decay: 0.1, betas: [0.9, 0.95]}
loss_type: [sigmoid, "sft"]
text: |
  abc
hf_dataset:
  - path: x/y
    train_split: "train[:80%]"
"""


@pytest.mark.parametrize("mode", list(registry()))
def test_any_value_of_any_key(mode):
    draw, tally = random.Random(mode), Counter()
    options = option_fields(registry()[mode].trainer.options)
    keys = [*RunSettings.model_fields, *DataSettings.model_fields, *options, *host.CONFIG_DEFAULTS, "unknown"]
    keys = [key for key in keys if key != "config"]
    for _ in range(300):
        given = {draw.choice(keys): draw.choice(VALUES) for _ in range(draw.choice([1, 1, 2, 5]))}
        with told_or_fine(given, tally):
            resolved = resolve({"train_mode": mode, **given}, registry())
            optimizer = build_optimizer(resolved.settings)
            assert optimizer.learning_rate.item() >= 0
    assert min(tally["taken"], tally["refused"]) > 20, tally


def test_any_text_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw, tally = random.Random(0), Counter()
    file = tmp_path / "run.yaml"
    for _ in range(800):
        text = GOOD
        for _ in range(draw.randint(1, 5)):
            at, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
            text = draw.choice(
                [
                    text[:at] + text[at + draw.randrange(12) :],
                    text[:at] + draw.choice(WORDS) + text[at:],
                    text[:at] + text[end : end + 40] + text[at:],
                    text[:at] + chr(draw.randrange(0xD800)) + text[at + 1 :],
                ]
            )
        file.write_text(text, encoding="utf-8")
        with told_or_fine(text, tally):
            for note in resolve({"config": str(file), "train_mode": "dpo"}, registry()).notes:
                note.encode()
    assert min(tally["taken"], tally["refused"]) > 20, tally
    assert [path.name for path in Path().iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    "tag", ["object/apply:os.mkdir [pwned]", "name:os.mkdir", "module:os", "object/new:os.mkdir [x]"]
)
def test_no_tag_makes_python_of_it(tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(f"beta: !!python/{tag}\n")
    tally = Counter()
    with told_or_fine(tag, tally):
        resolve({"config": "run.yaml", "train_mode": "dpo"}, registry())
    assert tally == {"refused": 1}
    assert [path.name for path in Path().iterdir()] == ["run.yaml"]
