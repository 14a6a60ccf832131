"""Runs on conversations of several turns: only the assistant's tokens are trained on, in every mode and engine."""

import json
import math
import re
from pathlib import Path

import mlx_lm
import mlx_lm_lora.train as host
import numpy as np
import pytest

from mlx_lm_lora_prefplus.data.tokens import cache
from mlx_lm_lora_prefplus.host.seam.install import activate
from tests.conftest import WORDS
from tests.engine.logprobs.test_loss_mask import sums_of_counted

activate(host)


def conversations(count: int, seed: int) -> list[dict]:
    """Pairs whose chosen side calls a tool, is asked again and answers; the words of the others come from elsewhere."""
    rng = np.random.default_rng(seed)
    draw = lambda words: " ".join(rng.choice(words, rng.integers(1, 6)))  # noqa: E731

    def say(role: str, words: list[str]) -> dict:
        return {"role": role, "content": draw(words)}

    def side(words: list[str]) -> list[dict]:
        given = [say("system", WORDS[10:20]), say("assistant", words), say("user", WORDS[:10])]
        return [say("assistant", words), *given, say("assistant", words)]

    return [
        {"prompt": [say("user", WORDS[:10])], "chosen": side(WORDS[20:30]), "rejected": side(WORDS[30:])}
        for _ in range(count)
    ]


@pytest.fixture
def go(model_folder, tmp_path, monkeypatch, capsys):
    """Run the host's `main` on conversations; returns what was printed."""
    (tmp_path / "data").mkdir()
    for seed, (split, count) in enumerate((("train", 8), ("valid", 3))):
        lines = map(json.dumps, conversations(count, seed))
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "cache"))

    def run(**changes) -> str:
        config = {
            "model": str(model_folder),
            "data": "data",
            "train": True,
            "train_mode": "dpo",
            "iters": 4,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "fuse": False,
            **changes,
        }
        host.main(config)
        return capsys.readouterr().out

    return run


WAYS = {
    "auto": {},
    "plain": {"engine": "plain"},
    "pieces": {"efficient_long_context": True, "long_context_chunk": 4},
    "upper layers": {"num_layers": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_policy_and_reference_count_the_same_tokens(go, way, model_folder, tmp_path):
    out = go(**WAYS[way])
    assert math.isclose(float(re.search(r"Iter 1: Val loss ([\d.]+)", out)[1]), math.log(2), abs_tol=1e-3)
    assert re.search(r"[\d,]+ of the completions' tokens do not count in the loss", out)
    model, _ = mlx_lm.load(str(model_folder))
    expected = {}
    for file in (tmp_path / "cache" / "tokens").glob("*.arrow"):
        rows = list(cache.load(file.parent, file.stem)[0])
        expected[len(rows)] = np.array(sums_of_counted(model, rows)).reshape(2, -1).T
    kept = [np.load(file) for file in (tmp_path / "cache" / "reference").glob("*.npy")]
    assert sorted(map(len, kept)) == sorted(expected) == [3, 8]
    for logps in kept:
        np.testing.assert_allclose(logps, expected[len(logps)], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"train_mode": "kto"}, {"loss_type": "plackett_luce"}, {"ld_alpha": 0.5}])
def test_other_rows_and_losses(go, changes):
    out = go(**changes)
    assert "do not count in the loss" in out and Path("adapters/adapters.safetensors").exists()


@pytest.mark.slow
def test_the_key_makes_another_reference(go, tmp_path):
    go()
    first = set((tmp_path / "cache" / "reference").glob("*.npy"))
    out = go(assistant_only_loss=False, adapter_path="all")
    both = set((tmp_path / "cache" / "reference").glob("*.npy"))
    assert "do not count in the loss" not in out
    assert len(first) == 2 and len(both) == 4
    assert Path("adapters/adapters.safetensors").read_bytes() != Path("all/adapters.safetensors").read_bytes()
