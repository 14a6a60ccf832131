"""`streaming: true`: the rows come window by window, and the run is the one that its rows make."""

import gc
import json
import math
from pathlib import Path

import numpy as np
import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.run import session as session_module
from mlx_lm_lora_prefplus.preview.report import build_report
from mlx_lm_lora_prefplus.storage.cache_folder import cache_folder
from tests.conftest import write_pairs

STREAM = {"streaming": True, "shuffle_buffer": 4, "batch_size": 2, "val_batches": 1}
"""Windows of 4, 4 and 2 rows of the 10: the pass is 5 micro-batches."""


def adapters(folder: str = "adapters") -> bytes:
    return Path(folder, "adapters.safetensors").read_bytes()


def metrics(folder: str = "adapters") -> list[float]:
    lines = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line.get("split") == "train"]


@pytest.fixture
def rows_trained(monkeypatch):
    """The row numbers of the training batches that are taken, in their order."""
    seen = []
    real = session_module.Session.batches

    def batches(self, split, epoch=0):
        for batch in real(self, split, epoch):
            if split == "train":
                seen.append([self.rows[split][int(place)]["row"] for place in np.array(batch.ids)])
            yield batch

    monkeypatch.setattr(session_module.Session, "batches", batches)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dpo", "cpo"])
def test_a_window_that_holds_all_rows_gives_the_run_of_the_whole_set(go, mode):
    go(adapter_path="whole", train_mode=mode, iters=6)
    go(adapter_path="stream", train_mode=mode, iters=6, streaming=True, shuffle_buffer=10)
    assert adapters("stream") == adapters("whole")
    assert metrics("stream") == metrics("whole")


def test_the_loss_begins_at_ln_2_and_the_start_says_that_rows_are_streamed(go):
    out, seen = go(**STREAM, iters=6, learning_rate=1e-30, steps_per_report=1)
    assert [info["train_loss"] for info in seen.train] == pytest.approx([math.log(2)] * 6, rel=1e-6)
    assert seen.val[0]["val_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert "rows: streaming, number unknown, shuffled 4 at a time" in out
    assert "training rows are computed when used" in out
    assert "train.jsonl (streamed, total number unknown; this is about the first 4)" in " ".join(out.split())


@pytest.mark.slow
def test_a_run_that_goes_on_gives_the_bytes_of_one_that_was_never_stopped(go):
    """Within a window, behind its end, and in the second pass over the rows."""
    go(**STREAM, adapter_path="straight", iters=8)
    for stopped in (1, 2, 6):
        folder = f"stopped at {stopped}"
        go(**STREAM, adapter_path=folder, iters=stopped)
        assert adapters(folder) != adapters("straight")
        go(**STREAM, adapter_path=folder, iters=8, resume=True)
        assert adapters(folder) == adapters("straight")


@pytest.mark.slow
def test_rows_of_an_update_come_from_two_windows(go, rows_trained):
    go(**STREAM, iters=6, gradient_accumulation_steps=3, steps_per_report=6)
    assert [sorted(row for rows in rows_trained[:2] for row in rows), sorted(rows_trained[4])] == [
        [1, 2, 3, 4],
        [9, 10],
    ]


@pytest.mark.slow
def test_the_buffer_is_shuffled_by_the_seed_and_each_pass_anew(go, rows_trained):
    orders = []
    for seed in (0, 1):
        rows_trained.clear()
        go(**STREAM, iters=15, seed=seed, adapter_path=f"{len(orders)}")
        orders.append([row for rows in rows_trained for row in rows])
    assert orders[0] != orders[1]
    for order in orders:
        passes = [order[start : start + 10] for start in (0, 10, 20)]
        assert all(sorted(one[:4]) == [1, 2, 3, 4] and sorted(one) == list(range(1, 11)) for one in passes)
        assert not passes[0] == passes[1] == passes[2]


def test_no_buffer_keeps_the_order(go, rows_trained):
    go(**{**STREAM, "shuffle_buffer": 0}, iters=7)
    assert rows_trained[:7] == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [1, 2], [3, 4]]


@pytest.mark.slow
def test_memory_and_disk_do_not_grow_with_the_rows(go, monkeypatch, tmp_path):
    """600 rows are read. No window is kept, and the cache holds the validation rows alone."""
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "cache"))
    write_pairs(tmp_path / "many", train=600, valid=3)
    settings = {"data": "many", "streaming": True, "shuffle_buffer": 50, "batch_size": 25, "steps_per_eval": 99}
    size = lambda: sum(file.stat().st_size for file in cache_folder().rglob("*") if file.is_file())  # noqa: E731
    go(**settings, iters=1, adapter_path="short")
    one_window, seen = size(), []
    real = session_module.Session.window

    def window(self, number):
        part = real(self, number)
        seen.append((number, len(part.rows["train"]), size()))
        kept = [one for one in gc.get_objects() if isinstance(one, session_module.Session) and one.number]
        assert len(kept) <= 2  # this one, and the one before until its last batch is let go
        return part

    monkeypatch.setattr(session_module.Session, "window", window)
    go(**settings, iters=24, save_every=99)
    assert [number for number, _, _ in seen] == list(range(12))
    assert {rows for _, rows, _ in seen} == {50}
    assert {bytes_ for _, _, bytes_ in seen} == {one_window}


@pytest.mark.parametrize(
    "moving",
    [
        {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0},
        {"bema_for_ref_model": True, "bema_update_freq": 1},
    ],
    ids=["tr_dpo", "bema"],
)
@pytest.mark.slow
def test_a_moving_reference_goes_on_over_the_windows(go, moving):
    go(**STREAM, adapter_path="fixed", iters=7)
    go(**STREAM, **moving, adapter_path="moving", iters=7)
    go(**STREAM, **moving, adapter_path="stopped", iters=5)
    go(**STREAM, **moving, adapter_path="stopped", iters=7, resume=True)
    assert adapters("moving") == adapters("stopped") != adapters("fixed")


def test_kto_leaves_out_a_rest_of_one_row(go, tmp_path, rows_trained):
    rows = [{"prompt": f"w{i}", "completion": f"w{i + 1} w2", "label": i % 2 == 0} for i in range(5)]
    (tmp_path / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    go(**{**STREAM, "shuffle_buffer": 2, "val_batches": 0}, train_mode="kto", iters=5)
    assert [sorted(one) for one in rows_trained[:5]] == [[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]


def test_batches_within_a_token_budget(go, rows_trained):
    go(**STREAM, token_budget=40, iters=6)
    passed = [row for rows in rows_trained for row in rows]
    assert len(rows_trained) == 6 and sorted(passed[:4]) == [1, 2, 3, 4]


def test_rows_that_cannot_be_used_are_left_out(go, tmp_path):
    lines = (tmp_path / "data/train.jsonl").read_text().splitlines()
    same = json.dumps({"prompt": "w1", "chosen": "w2", "rejected": "w2"})
    file = tmp_path / "data/train.jsonl"
    file.write_text("\n".join([*lines[:4], *[same] * 6, *lines[4:6]]) + "\n")  # windows of 4, 0, 2 usable rows
    go(**STREAM, iters=7, steps_per_report=1)
    assert len(metrics()) == 7
    file.write_text("\n".join([same] * 9) + "\n")
    with pytest.raises(UserError, match="none of 4 consecutive rows can be used"):
        go(**STREAM, adapter_path="none")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"iters": None}, "streaming: True (command line) needs iters"),
        ({"iters": None, "epochs": 2}, "epochs: 2 cannot be counted"),
        ({"train_type": "full"}, "train_type full has no adapters"),
        ({"reference_model_path": "elsewhere"}, "cannot use reference_model_path"),
        ({"streaming": False}, "shuffle_buffer: 4 (command line) has no effect without streaming"),
        ({"shuffle_buffer": -1}, "shuffle_buffer: -1"),
        ({"data": None, "hf_dataset": {"path": "data/train.jsonl"}}, "a part of a split cannot be streamed"),
    ],
)
def test_what_a_stream_cannot_have_is_refused(go, settings, said):
    with pytest.raises(UserError) as caught:
        go(**{**STREAM, **settings})
    assert said in str(caught.value)


@pytest.mark.slow
def test_all_weights_train_on_a_stream_without_a_reference(go):
    go(**STREAM, train_mode="cpo", train_type="full", iters=3)


def test_another_buffer_or_other_rows_are_another_run(go, tmp_path):
    go(**STREAM, iters=2)
    with pytest.raises(UserError, match="train rows changed"):
        go(**{**STREAM, "shuffle_buffer": 5}, resume=True)
    write_pairs(tmp_path / "data", seed=1, train=10)
    with pytest.raises(UserError, match="train rows changed"):
        go(**STREAM, resume=True)


@pytest.mark.parametrize("ending", ["json", "parquet", "csv"])
@pytest.mark.slow
def test_other_files_and_folders_stream(go, tmp_path, ending):
    """A folder that `datasets` reads, as it reads one of the hub: the same run as of the JSON Lines."""
    import datasets

    go(**STREAM, adapter_path="jsonl", iters=7)
    table = datasets.Dataset.from_json(str(tmp_path / "data/train.jsonl"), cache_dir=str(tmp_path / "hub"))
    folder = tmp_path / "folder" / "data"
    folder.mkdir(parents=True)
    getattr(table, f"to_{ending}")(str(folder / f"train-00000-of-00001.{ending}"))
    splits = {"path": "folder", "train_split": "train", "valid_split": None}
    go(**STREAM, adapter_path=ending, iters=7, hf_dataset=splits)
    go(**STREAM, adapter_path="by name", iters=7, data="folder")
    assert adapters(ending) == adapters("by name") == adapters("jsonl")


def test_check_says_it(go, tmp_path, monkeypatch, model_folder):
    go(**STREAM, iters=1)
    config = {"model": str(model_folder), "data": "data", "train_mode": "dpo", "iters": 3, **STREAM}
    Path("run.yaml").write_text(json.dumps(config))
    report = build_report(["run.yaml", "--adapter-path", "other"], measured=False)
    assert report["can_start"], report["problems"]
    assert "rows: streaming, number unknown" in report["plan"]
    assert report["data"]["train"]["used"] == 4 and "streamed" in report["data"]["train"]["source"]
