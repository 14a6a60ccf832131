"""What many tests need: small models, rows, and the folder of real data where it is at hand."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from mlx_lm.models import llama
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_lm_lora_prefplus.data.batches.collate import planned_batches
from mlx_lm_lora_prefplus.data.batches.lengths import lengths_of
from mlx_lm_lora_prefplus.data.batches.plan import plan_epoch
from mlx_lm_lora_prefplus.plugin import Batch
from tests.paths import SHARED

VOCABULARY = 64

# On a CPU, MLX compiles each fused operation with g++, for two seconds, even a model's activation function. Tests of
# compiled steps ask for it by the fixture `compiling`; the variable is for the processes that tests start.
if mx.default_device().type == mx.cpu:
    mx.disable_compile()
    os.environ["MLX_DISABLE_COMPILE"] = "1"

# No example fails because the machine is busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests marked `shared` run only where the real data is; those that compile are slow."""
    for item in items:
        if "compiling" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="the real data (../shared) is not here"))


@pytest.fixture
def shared() -> Path:
    return SHARED


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """No test touches the user's cache."""
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def compiling() -> Iterator[None]:
    """`mx.compile` compiles on a CPU too. In other tests, it returns the function itself there."""
    mx.enable_compile()
    yield
    if "MLX_DISABLE_COMPILE" in os.environ:
        mx.disable_compile()


@pytest.fixture
def derivatives(monkeypatch) -> list[int]:
    """How many calls of `mx.jvp` are under way; only the first item counts."""
    derivative, depth = mx.jvp, [0]

    def entered(*given):
        depth[0] += 1
        try:
            return derivative(*given)
        finally:
            depth[0] -= 1

    monkeypatch.setattr(mx, "jvp", entered)
    return depth


@pytest.fixture
def path_of_a_cpu(monkeypatch):
    """A GPU takes the way of a CPU: no packed rows, no compiled steps, batches in parts."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu, 0))


@pytest.fixture(autouse=True, scope="session")
def signals_are_heard():
    """Children inherit what a shell ignores: SIGINT where it started the tests in the background, SIGHUP by nohup."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def tiny_llama(seed: int = 0, hidden: int = 32, layers: int = 2, tied: bool = True) -> nn.Module:
    """A llama with random weights, small enough for a test."""
    mx.random.seed(seed)
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=2 * hidden,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=VOCABULARY,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
        )
    )
    mx.eval(model.parameters())
    return model


def with_lora(
    model: nn.Module, *, dora: bool = False, dropout: float = 0.0, rank: int = 4, moved: bool = True, layers: int = -1
):
    """Put adapters on the last so many layers (-1: all).

    moved: give lora_b random values, so that the policy is not its reference.
    """
    model.freeze()
    linear_to_lora_layers(model, layers, {"rank": rank, "dropout": dropout, "scale": 10.0}, use_dora=dora)
    if moved:
        for _, module in model.named_modules():
            if "lora_b" in module:
                module.lora_b = 0.02 * mx.random.normal(module.lora_b.shape)
    mx.eval(model.parameters())
    return model


def random_rows(count: int, seed: int = 0, longest: int = 12) -> list[dict[str, list[int]]]:
    """Token rows of uneven lengths."""
    rng = np.random.default_rng(seed)
    draw = lambda: rng.integers(1, VOCABULARY, rng.integers(1, longest + 1)).tolist()  # noqa: E731
    return [{"prompt": draw(), "chosen": draw(), "rejected": draw()} for _ in range(count)]


def iterate_batches(
    rows: list[dict[str, Any]], *, batch_size: int, multiple: int = 1, mismatched: bool = False, **order: Any
) -> Iterator[Batch]:
    """The batches of one epoch. order: further arguments of `plan_epoch`."""
    plan = plan_epoch(lengths_of(rows), batch_size=batch_size, multiple=multiple, **order)
    return planned_batches(rows, plan, multiple, mismatched=mismatched)


WORDS = [f"w{i}" for i in range(40)]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A folder that `mlx_lm.load` reads: a random llama whose widths take 4-bit groups of 128, words as tokens."""
    from mlx_lm.utils import save_config, save_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    model = tiny_llama(hidden=128, tied=False)
    save_model(folder, model)
    save_config(vars(model.args), folder / "config.json")
    vocabulary = ["<s>", "</s>", "<unk>", "<system>", "<user>", "<assistant>", *WORDS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT_TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(folder: Path, seed: int = 0, **splits: int) -> Path:
    """JSONL files of so many pairs; the chosen completions draw on other words than the rejected."""
    rng = np.random.default_rng(seed)
    draw = lambda words: " ".join(rng.choice(words, rng.integers(1, 6)))  # noqa: E731
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in splits.items():
        rows = (
            {"prompt": draw(WORDS[:20]), "chosen": draw(WORDS[20:30]), "rejected": draw(WORDS[30:])}
            for _ in range(count)
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Recorder(TrainingCallback):
    """A callback that keeps what a run reports."""

    def __init__(self):
        self.train, self.val = [], []

    def on_train_loss_report(self, train_info):
        self.train.append(train_info)

    def on_val_loss_report(self, val_info):
        self.val.append(val_info)


@pytest.fixture
def go(model_folder, tmp_path, monkeypatch, capsys):
    """Run the host's `main` on a small config; returns what was printed and the payloads that callbacks got."""
    import mlx_lm_lora.train as host

    from mlx_lm_lora_prefplus.host.run import run as run_module
    from mlx_lm_lora_prefplus.host.seam.install import activate

    activate(host)
    write_pairs(tmp_path / "data", train=10, valid=3, test=3)
    monkeypatch.chdir(tmp_path)

    def run(**changes):
        recorder = Recorder()
        real = run_module.run
        monkeypatch.setattr(run_module, "run", lambda resolved, _: real(resolved, recorder))
        config = {
            "model": str(model_folder),
            "data": "data",
            "train": True,
            "train_mode": "dpo",
            "iters": 4,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "steps_per_report": 2,
            "steps_per_eval": 2,
            "save_every": 2,
            "fuse": False,
            **changes,
        }
        host.main(config)
        monkeypatch.setattr(run_module, "run", real)
        return capsys.readouterr().out, recorder

    return run
