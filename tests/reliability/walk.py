"""Walks over the faults of a short run: at each operation each fault that it can meet, then the run goes on.

    python -m tests.reliability.walk [--modes dpo,kto] [--sample N] [--seed S] [--jobs J]

After a fault, what is on the disk must be whole, the message must be meant for people, and `--resume` must end with
the bytes of a run that met no fault. Prints how many faults each mode met, and every one that broke a promise.
Processes are forked from one that has imported everything and computed nothing: MLX allows that.
"""

import argparse
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import mlx_lm_lora.train as host

import mlx_lm_lora_prefplus.host.run.run  # noqa: F401  (imported here, so that no child has to)
from mlx_lm_lora_prefplus.host.seam.install import activate
from tests.reliability.faults import Faults, Operation, kinds_for

MODES = {
    "dpo": {"train_mode": "dpo"},
    "dpo-all-layers": {"train_mode": "dpo", "num_layers": 2, "test": True},
    "cpo": {"train_mode": "cpo", "cpo_alpha": 0.5, "fuse": True},
    "simpo": {"train_mode": "simpo", "save_best": "loss"},
    "orpo": {"train_mode": "orpo", "optimizer": "adamw"},
    "kto": {"train_mode": "kto", "data": "unpaired"},
    "bco": {"train_mode": "bco", "data": "unpaired"},
    "tr-dpo": {"train_mode": "dpo", "sync_ref_model": True, "ref_model_sync_steps": 2},
}
SETTINGS = {
    **{"data": "data", "train": True, "fuse": False, "iters": 5, "batch_size": 2, "gradient_accumulation_steps": 2},
    **{"learning_rate": 1e-3, "num_layers": 1, "lora_parameters": {"rank": 2, "dropout": 0.1, "scale": 10.0}},
    **{"save_every": 2, "steps_per_eval": 3, "steps_per_report": 2, "seed": 3, "adapter_path": "adapters"},
}
TIMING = ("iterations_per_second", "tokens_per_second", "peak_memory", "seconds")
CODES = {"kill": {137}, "tear": {137}, "SIGTERM": {143}, "SIGINT": {130}, "SIGHUP": {129}, "memory": {1}}
SECONDS = 120


class Result(NamedTuple):
    code: int
    out: str


class Walk:
    """A mode's faults. folder: holds the model and the rows; runs get folders beside them."""

    def __init__(self, folder: Path, mode: str):
        self.folder, self.mode = folder, mode
        self.alone = self.fresh("alone")
        ended = self.run(self.alone)
        assert ended.code == 0, ended.out
        self.weights = (self.alone / "adapters" / "adapters.safetensors").read_bytes()
        self.metrics = _metrics(self.alone)
        self.operations = [Operation(*one) for one in json.loads((self.alone / "operations.json").read_text())]

    def faults(self) -> list[tuple[Operation, str]]:
        """Every operation with every fault that it can meet."""
        return [(operation, kind) for operation in self.operations for kind in kinds_for(operation)]

    def problem(self, operation: Operation, kind: str) -> str | None:
        """What a fault breaks; None where every promise holds."""
        folder = self.fresh(f"{operation.number}-{kind}")
        try:
            first = self.run(folder, operation.number, kind)
            allowed = CODES.get(kind, {0, 1}) | ({0} if kind.startswith("SIG") else set())
            problem = None
            if first.code not in allowed:
                problem = f"exit code {first.code}"
            elif "Traceback" in first.out:
                problem = "a traceback"
            elif torn := torn_file(folder):
                problem = f"not whole: {torn}"
            if problem:
                return f"{problem}\n{first.out[-1500:]}"
            last = self.run(folder, resume=True)
            if torn := torn_file(folder, fused=True):
                return f"not whole after going on: {torn}\n{last.out[-1500:]}"
            if last.code:
                return f"going on ends with exit code {last.code}\n{first.out[-600:]}\n--\n{last.out[-1500:]}"
            if (folder / "adapters" / "adapters.safetensors").read_bytes() != self.weights:
                return f"other weights\n{first.out[-1000:]}\n--\n{last.out[-1000:]}"
            if _metrics(folder) != self.metrics:
                return f"other metrics\n{first.out[-1000:]}\n--\n{last.out[-1000:]}"
            return None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def fresh(self, name: str) -> Path:
        """A new folder for runs, with links to the model and the rows."""
        folder = self.folder / f"{self.mode}-{name}"
        folder.mkdir()
        for part in ("data", "unpaired", "model"):
            (folder / part).symlink_to(self.folder / part)
        return folder

    def run(self, folder: Path, number: int = 0, kind: str = "", **changes: Any) -> Result:
        """Run the host's command and wait for its end."""
        return self.start(folder, number, kind, **changes).wait()

    def start(self, folder: Path, number: int = 0, kind: str = "", name: str = "", **changes: Any) -> "Process":
        """The host's command in a forked process. changes: of the settings. name: of the file with its output."""
        out = folder / f"out-{name}{int(bool(changes.get('resume')))}.txt"
        process = os.fork()
        if not process:
            _child(folder, out, {**SETTINGS, **MODES[self.mode], **changes}, number, kind)
        return Process(process, out)


class Process(NamedTuple):
    """A forked run. number: its process id. out: the file that it prints to."""

    number: int
    out: Path

    def wait(self) -> Result:
        """Its end; one that hangs is killed, and has the exit code -1."""
        code = -1
        for _ in range(SECONDS * 20):
            ended, status = os.waitpid(self.number, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.05)
        else:
            os.kill(self.number, signal.SIGKILL)
            os.waitpid(self.number, 0)
        return Result(code, self.out.read_text(errors="replace") if self.out.exists() else "")


def _child(folder: Path, out: Path, settings: dict, number: int, kind: str) -> None:
    """Never returns."""
    code = 99
    try:
        stream = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.chdir(folder)
        os.environ["MLX_LM_LORA_PREFPLUS_CACHE"] = str(folder / "cache")
        os.environ["HF_HUB_OFFLINE"] = "1"
        activate(host)
        config = out.with_suffix(".json")
        config.write_text(json.dumps({"model": "model", **settings}))
        faults = Faults(folder, number, kind)
        faults.install()
        sys.argv = ["mlx_lm_lora.train", "--config", str(config)]
        try:
            host.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except KeyboardInterrupt:
            code = 130
        faults.kind, faults.number = "", 0
        (folder / "operations.json").write_text(json.dumps(faults.operations))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _metrics(folder: Path) -> list[dict]:
    file = folder / "adapters" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def torn_file(folder: Path, fused: bool = False) -> str:
    """The first file with a name of its own that is not whole.

    fused: look at the fused model too. mlx-lm writes it in place, and the next start writes it again: until then a mark
        lies beside it, and mlx_lm.load refuses a torn file.
    """
    for file in sorted(folder.glob("*/**/*.safetensors")):
        if file.name.startswith(".tmp-") or (file.name.startswith("model") and not fused):
            continue
        content = file.read_bytes()
        try:
            size = struct.unpack("<Q", content[:8])[0]
            header = json.loads(content[8 : 8 + size])
            end = max(one["data_offsets"][1] for name, one in header.items() if name != "__metadata__")
            whole = len(content) == 8 + size + end
        except (ValueError, struct.error):
            whole = False
        if not whole:
            return str(file.relative_to(folder))
    for file in [*folder.glob("adapters/*.json")]:
        try:
            json.loads(file.read_text())
        except ValueError:
            return str(file.relative_to(folder))
    return ""


def make_world(folder: Path) -> None:
    """A model and rows, made in a process of their own: this one must not compute."""
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace\n"
        "from tests import conftest\n"
        "from tests.reliability.conftest import write_unpaired\n"
        "folder = Path(sys.argv[1])\n"
        "(folder / 'model').mkdir(parents=True)\n"
        "conftest.model_folder.__wrapped__(SimpleNamespace(mktemp=lambda _: folder / 'model'))\n"
        "conftest.write_pairs(folder / 'data', train=6, valid=2, test=2)\n"
        "write_unpaired(folder / 'unpaired', train=6, valid=2, test=2)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def walk(mode: str, folder: Path, sample: int | None = None, seed: int = 0, jobs: int = 1) -> tuple[Counter, list[str]]:
    """How many faults of each kind a mode met, and what broke."""
    walk = Walk(folder, mode)
    faults = walk.faults()
    if sample is not None:
        faults = random.Random(f"{mode} {seed}").sample(faults, min(sample, len(faults)))
    with ThreadPoolExecutor(jobs) as pool:
        problems = list(pool.map(lambda fault: walk.problem(*fault), faults))
    broken = [
        f"{mode}: {kind} at operation {operation.number}, {operation.what} {operation.file}: {problem}"
        for (operation, kind), problem in zip(faults, problems, strict=True)
        if problem
    ]
    return Counter(kind for _, kind in faults), broken


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args(arguments)
    failed = False
    with tempfile.TemporaryDirectory(prefix="prefplus-walk-") as temporary:
        make_world(Path(temporary))
        for mode in chosen.modes.split(","):
            counts, broken = walk(mode, Path(temporary), chosen.sample, chosen.seed, chosen.jobs)
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            print(f"{mode}: {counts.total()} faults ({kinds}), {len(broken)} broke a promise", flush=True)
            print("\n".join(broken), flush=True)
            failed = failed or bool(broken)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
