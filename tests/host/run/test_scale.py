"""The start of a run on many rows: memory-mapped, planned without reading rows, no object for each row.

`python -m tests.host.run.test_scale 200000 fill` makes the rows and the cache, and without `fill` measures a cached
start: seconds of each part, and the memory it adds (Linux).
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest

from mlx_lm_lora_prefplus.host import models
from mlx_lm_lora_prefplus.host.config.resolve import resolve
from mlx_lm_lora_prefplus.host.run import summary
from mlx_lm_lora_prefplus.host.run.references import ReferencePass
from mlx_lm_lora_prefplus.host.run.rows import read_rows
from mlx_lm_lora_prefplus.host.run.session import Session
from mlx_lm_lora_prefplus.plugin.manager import load_registry
from tests.conftest import WORDS, model_folder

pytestmark = pytest.mark.slow


def write_rows(folder: Path, count: int, mean: int) -> Path:
    """A training set of so many pairs with log-normal lengths: about `mean` words in a prompt and in a completion."""
    rng = np.random.default_rng(0)
    text = " ".join(rng.choice(WORDS, 20 * mean))
    starts, lengths = rng.integers(0, 10 * mean, (count, 3)), np.exp(rng.normal(np.log(mean), 0.6, (count, 3)))
    folder.mkdir(parents=True)
    with (folder / "train.jsonl").open("w") as file:
        for number, (begin, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            parts = [text[3 * b : 3 * b + int(3 * n) + 3] for b, n in zip(begin, length, strict=True)]
            row = {"prompt": f"{number} {parts[0]}", "chosen": f"w1 {parts[1]}", "rejected": f"w2 {parts[2]}"}
            file.write(json.dumps(row) + "\n")
    return folder


class Start:
    """What happens between the loading of the model and the first step, part by part."""

    def __init__(self, model_path: Path, data: Path):
        given = {"model": str(model_path), "data": str(data), "train": True, "train_mode": "dpo", "batch_size": 4}
        self.resolved = resolve({**given, "epochs": 1, "fuse": False}, load_registry())
        self.model, self.tokenizer = models.load_base(self.resolved.settings)
        models.add_adapters(self.model, self.resolved.settings)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str):
        begin = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begin, 2)

    def run(self) -> None:
        with self.part("rows"):
            self.splits = read_rows(self.resolved, self.tokenizer)
        with self.part("work"):
            rows = {name: split.rows for name, split in self.splits.items()}
            self.session = Session(self.resolved, self.model, self.tokenizer, rows)
        with self.part("summary"):
            self.planned = ReferencePass(self.session)
            self.lines = summary.lines(self.session, self.splits, self.planned)
        with self.part("reference"):
            self.reference = self.planned.source()
        with self.part("first batch"):
            self.batch = next(self.session.batches("train"))

    def fill_reference(self) -> None:
        """As after a pass over all rows; the pass itself is not measured here."""
        splits = read_rows(self.resolved, self.tokenizer)
        session = Session(
            self.resolved, self.model, self.tokenizer, {name: split.rows for name, split in splits.items()}
        )
        for store in ReferencePass(session).stores.values():
            store.add(np.arange(len(store.logps)), np.full(store.logps.shape, -1.0, np.float32))
            store.save()


def test_a_cached_start_makes_no_object_for_each_row(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "kept"))
    count = 20_000
    start = Start(model_folder, write_rows(tmp_path / "data", count, mean=8))
    start.fill_reference()
    allocated = pyarrow.total_allocated_bytes()
    start.run()  # whatever is imported on the way is imported now
    gc.collect()
    before = sys.getallocatedblocks()
    again = SimpleNamespace(first=start.batch, session=start.session)
    start.run()
    gc.collect()
    assert sys.getallocatedblocks() - before < count / 4
    rows = start.session.rows["train"]
    assert rows is not again.session.rows["train"]
    assert pyarrow.total_allocated_bytes() - allocated < rows.table.nbytes / 10, "the rows stay on disk"
    assert len(rows) == count and start.splits["train"].report.cached
    assert any(f"{count} of {count} rows from the cache" in line for line in start.lines)
    assert start.reference.stored["train"].logps.nbytes == 8 * count


def resident() -> dict[str, float]:
    """Resident memory in MB: all of it, and the part that is not the content of files (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    words = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return {"all": words["VmRSS:"] / 1e3, "own": words["RssAnon:"] / 1e3}


@pytest.mark.parametrize("mode", ["dpo", "kto"])
def test_a_later_start_imports_neither_datasets_nor_pandas(mode, model_folder, tmp_path):
    """They would take a fifth of the time of a start with few rows. The first start makes Arrow arrays of lists, and
    pyarrow imports pandas for that.
    """
    write_rows(tmp_path / "data", 8, mean=8)
    config = {"model": str(model_folder), "data": "data", "train": True, "train_mode": mode, "iters": 1, "fuse": False}
    code = f"""
import sys, mlx_lm_lora.train as host
from mlx_lm_lora_prefplus.host.seam.install import activate
activate(host)
host.main({config | {"batch_size": 2}})
print("imported:", *{{"datasets", "pandas"}} & sys.modules.keys())
"""
    first, later = (
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True) for _ in range(2)
    )
    assert "datasets" not in first.stdout.rpartition("imported:")[2], first.stderr[-3000:]
    assert later.stdout.endswith("imported:\n"), later.stdout[-1000:] + later.stderr[-3000:]


def measure(count: int) -> None:
    """Print seconds and MB of a cached start on rows of a usual size (about 600 tokens), after `fill`."""
    folder = Path(tempfile.gettempdir()) / f"prefplus-scale-{count}"
    model_path = folder / "model"
    if not folder.exists():
        folder.mkdir()
        made = model_folder.__wrapped__(SimpleNamespace(mktemp=lambda _: model_path.mkdir() or model_path))
        assert made == model_path
        write_rows(folder / "data", count, mean=200)
    start = Start(model_path, folder / "data")
    if "fill" in sys.argv:
        start.fill_reference()
        return
    before, begin = resident(), time.perf_counter()
    start.run()
    after = resident()
    print(json.dumps(start.seconds), f"together {time.perf_counter() - begin:.2f} s")
    print({key: f"+{after[key] - before[key]:.0f} MB" for key in after})
    print("\n".join(start.lines))


if __name__ == "__main__":
    measure(int(sys.argv[1]))
