"""What is checked before the first step: the metrics that settings name."""

import json
from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.trainers import DPO


def write_unpaired(folder: Path, **labels: list[bool]) -> None:
    """Write a split for each name, with one row for each label."""
    folder.mkdir()
    for name, split in labels.items():
        rows = [
            {"prompt": f"w{i}", "completion": "w7 w8" if label else "w9", "label": label}
            for i, label in enumerate(split)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")


@pytest.mark.parametrize("metric", ["rewards/chosen", "rewards/rejected"])
def test_a_metric_that_some_batches_lack_is_accepted(go, metric):
    """A batch of one row is desirable or undesirable."""
    write_unpaired(Path("unpaired"), train=[True, False] * 3, valid=[True, True, False])
    out, _ = go(train_mode="kto", data="unpaired", batch_size=1, iters=2, val_batches=-1, save_best=metric)
    assert f"Best {metric}" in out


def test_a_metric_that_no_row_has_is_refused(go):
    write_unpaired(Path("unpaired"), train=[True, False] * 3, valid=[True, True])
    with pytest.raises(UserError, match="save_best: validation has no metric 'rewards/rejected'"):
        go(train_mode="kto", data="unpaired", batch_size=1, iters=2, val_batches=-1, save_best="rewards/rejected")
    assert not Path("adapters/adapters.safetensors").exists()


def test_running_out_of_memory_is_explained(go, monkeypatch):
    def evaluate(*_, **__):
        raise RuntimeError("[malloc_or_wait] Unable to allocate 4294967296 bytes.")

    monkeypatch.setattr(type(DPO), "evaluate", evaluate)
    with pytest.raises(UserError, match=r"Out of memory.*MLX requested 4\.3 GB more"):
        go(save_best="rewards/margins")
