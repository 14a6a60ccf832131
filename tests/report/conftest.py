"""Adapter folders as runs leave them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "</script></title></pre><img src=x onerror=alert(1)>\"'&<!-- é\u2028"


def report(iteration: int, split: str = "train", **values: float) -> dict[str, Any]:
    """A line of metrics.jsonl: a run that learns, whose accuracy after 100 iterations is 0.9."""
    share = min(iteration / 100, 1)
    line = {
        **{"iteration": iteration, "split": split, "loss": 0.693 - 0.4 * share},
        **{"rewards/chosen": 0.2 * share, "rewards/rejected": -0.6 * share, "rewards/margins": 0.8 * share},
        **{"rewards/accuracies": 0.5 + 0.4 * share, "logps_per_token/chosen": -1.5, "logps_per_token/rejected": -1.9},
        **{"logps/chosen": -60.0, "logps/rejected": -70.0, "entropy": 2.0, "rows": 200},
    }
    if split == "train":
        line |= {"grad_norm": 3.0, "learning_rate": 1e-5, "tokens_per_second": 900.0, "peak_memory": 1.25}
    return line | values


@pytest.fixture
def make(tmp_path) -> Callable[..., Path]:
    """make(name, lines=…, about=…, samples=…) → the folder of a run."""

    def make(name="run", lines=None, about=None, samples=(), tail=""):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if lines is None:
            lines = [report(1, "valid")]
            for iteration in range(10, 101, 10):
                lines += [report(iteration), *([report(iteration, "valid")] if iteration % 50 == 0 else [])]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
        if about is not None:
            (folder / "run.json").write_text(json.dumps(about))
        if samples:
            (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        return folder

    return make


@pytest.fixture
def hostile(make) -> Path:
    """A run in which every text from outside tries to leave its place."""
    return make(
        lines=[
            report(1, "valid"),
            report(5, **{HOSTILE: 1.0, f"{HOSTILE}/chosen": 2.0}),
            {"iteration": 6, "warning": "w", "text": HOSTILE},
            report(10, "valid"),
        ],
        about={
            "started": HOSTILE,
            "summary": [f"{HOSTILE}: {HOSTILE}"],
            "warnings": [HOSTILE],
            "settings": {HOSTILE: {"value": HOSTILE, "source": HOSTILE}, "model": {"value": [HOSTILE], "source": "x"}},
            "data": {HOSTILE: {"source": HOSTILE, "shape": HOSTILE, "dropped": {HOSTILE: HOSTILE}, "read": HOSTILE}},
            "versions": {HOSTILE: HOSTILE},
        },
        samples=[{"iteration": 5, "prompt": HOSTILE, "policy": HOSTILE, "reference": HOSTILE}] * 2,
    )
