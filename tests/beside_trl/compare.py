"""TRL beside this package: do both train the same, and what does a step and a run of each cost?

    pip install '.[cpu,trl]'
    python -m tests.beside_trl.compare                          # the toy shape
    python -m tests.beside_trl.compare --shape qwen2.5-0.5b --layers 4 --pairs 1 --parts steps

First both train all weights with each loss for 20 steps, from the same weights, rows and batches, and losses, rewards,
log-probs and gradient norms are compared. Then steps of LoRA are timed in two processes in turn, one thread each, and
whole runs, from the start of the process to its end. Prints tables in Markdown; `--json FILE` also writes the figures.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlx_lm_lora_prefplus.engine.memory.activations import CHOICES
from tests.paths import ROOT

from . import cases

HERE = Path(__file__).parent
GIB, MIB = 2**30, 2**20
TOLERANCE = 1e-4
SMALL_REWARD = 2e-4
"""A reward is beta (0.1) times the difference of two log-probs of 7 digits. Below this share of a log-prob, the first 4
digits of the reward are not certain.
"""
PARTS = ("agreement", "steps", "runs")
FIGURES = ("loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable, help="the Python that has trl, peft and torch")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)}")
    parser.add_argument("--shape", help=f"one of {', '.join(cases.ARCHITECTURES)} in place of the toy llama")
    parser.add_argument("--layers", type=int, help="only so many layers of the shape")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of a step; of KTO twice as many rows")
    parser.add_argument("--repeat", type=int, default=3, help="timed steps, and runs, of each side")
    parser.add_argument("--only", default="", help="of steps and runs, those whose name has this in it")
    parser.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing on TRL's side, its default"
    )
    parser.add_argument("--memory", choices=list(CHOICES), default="fast", help="what layers keep in our steps")
    parser.add_argument("--json", type=Path, help="also write all figures into this file")
    asked = parser.parse_args()
    parts = asked.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: {unknown[0]!r} is none of {', '.join(PARTS)}")
    if asked.shape and "runs" in parts:
        parser.error("--shape: runs take the toy shape alone, since other classes bring tokenizers; give --parts steps")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            result[part] = {"agreement": agreement, "steps": steps, "runs": runs}[part](Path(folder) / part, asked)
            print(flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")
    if not all(row["agrees"] for row in result.get("agreement", [])):
        raise SystemExit("Not all trainings agree.")


def command(side: str, task: str, folder: Path, asked: argparse.Namespace) -> list[str]:
    if side == "ours":
        return [sys.executable, "-m", "tests.beside_trl.ours", task, str(folder)]
    return [asked.trl_python, str(HERE / "theirs.py"), task, str(folder)]


def environment() -> dict[str, str]:
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def agreement(folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Train each case on both sides, and print by how much their figures differ at most."""
    cases.save_model(folder, cases.SMALL)
    (folder / "cases.json").write_text(json.dumps(cases.agreement_cases()))
    found = {}
    for side in ("trl", "ours"):
        output = _output(command(side, "agree", folder, asked))
        found[side] = {row["case"]: row["steps"] for row in map(json.loads, output.splitlines())}
    print(f"| {cases.STEPS} steps | loss | gradient norm | log-probs | rewards |\n|---|---|---|---|---|")
    rows = []
    for name, theirs in found["trl"].items():
        row = {"case": name, **{figure: _difference(found["ours"][name], theirs, figure) for figure in FIGURES}}
        row["agrees"] = max(value for figure, value in row.items() if figure in FIGURES) <= TOLERANCE
        rows.append(row)
        pairs = [max(row[f"{kind}/{side}"] for side in ("chosen", "rejected")) for kind in ("logps", "rewards")]
        cells = (f"{value:.0e}" for value in (row["loss"], row["grad_norm"], *pairs))
        print(f"| {name}{'' if row['agrees'] else ' (differs)'} | {' | '.join(cells)} |")
    return rows


def _difference(ours: list[dict], theirs: list[dict], figure: str) -> float:
    """The largest difference of a figure over the steps, relative to TRL's.

    Rewards begin at 0: their differences are relative to the largest reward, or to `SMALL_REWARD` of the largest
    log-prob if that is more.
    """
    values = [(mine[figure], other[figure]) for mine, other in zip(ours, theirs, strict=True) if figure in other]
    if not figure.startswith("rewards"):
        return max(abs(mine - other) / abs(other) for mine, other in values)
    logps = [abs(other.get(figure.replace("rewards", "logps"), 0.0)) for other in theirs]
    largest = max(*(abs(other) for _, other in values), SMALL_REWARD * max(logps))
    return max(abs(mine - other) for mine, other in values) / largest


class Side:
    """A process that prepares and times steps on request."""

    def __init__(self, side: str, folder: Path, asked: argparse.Namespace):
        self.process = subprocess.Popen(
            command(side, "serve", folder, asked),
            **{"cwd": ROOT, "env": environment(), "text": True, "bufsize": 1},
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL},
        )

    def ask(self, **request: Any) -> dict[str, float]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}; run it by hand to see why.")
        return json.loads(answer)

    def end(self) -> None:
        self.process.communicate()


def steps(folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Time loss and gradient of LoRA on both sides, one process each for every case, and print the medians."""
    vocabulary = cases.save_model(folder, asked.shape or cases.TOY, asked.layers)
    print("| a step | TRL → here, CPU s | faster | TRL → here, MiB | less | matmul, GF/s |\n|---|---|---|---|---|---|")
    rows = []
    for case in cases.speed_cases(vocabulary, asked.pairs):
        if asked.only not in case["name"]:
            continue
        sides = {side: Side(side, folder, asked) for side in ("trl", "ours")}
        given = {**case, "grad_checkpoint": asked.checkpointing, "memory": asked.memory}
        prepared = {side: process.ask(case=given) for side, process in sides.items()}
        taken = [{side: process.ask() for side, process in sides.items()} for _ in range(asked.repeat + 1)]
        for process in sides.values():
            process.end()
        row: dict[str, Any] = {"case": case["name"]}
        for side in sides:
            row[f"{side}_gigaflops"] = prepared[side]["gigaflops"]
            for figure in ("cpu", "wall"):  # without the first, which warms up
                row[f"{side}_{figure}"] = statistics.median(step[side][figure] for step in taken[1:])
            row[f"{side}_bytes"] = max(step[side]["bytes"] for step in taken)
        rows.append(row)
        print(_line(row, "cpu", f" | {row['trl_gigaflops']:.0f}, {row['ours_gigaflops']:.0f}"), flush=True)
    return rows


def _line(row: dict[str, Any], seconds: str, more: str = "") -> str:
    theirs, ours = row[f"trl_{seconds}"], row[f"ours_{seconds}"]
    of_theirs, of_ours = row["trl_bytes"], row["ours_bytes"]
    return (
        f"| {row['case']} | {theirs:.2f} → {ours:.2f} | {theirs / ours:.1f}× | {of_theirs / MIB:,.0f} → "
        f"{of_ours / MIB:,.0f} | {of_theirs / of_ours:.1f}×{more} |"
    )


def runs(folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Run both sides from the start of the process to the saved adapters, in turn, and print the medians."""
    vocabulary = cases.save_model(folder, cases.TOY)
    print("| a run | TRL → here, CPU s | faster | TRL → here, peak MiB | less | wall, s |\n|---|---|---|---|---|---|")
    rows = []
    for case in cases.run_cases(vocabulary, asked.pairs):
        if asked.only not in case["name"]:
            continue
        (folder / "run.json").write_text(json.dumps({**case, "grad_checkpoint": asked.checkpointing}))
        cases.write_run(folder, case, asked.memory)
        commands = {"trl": command("trl", "run", folder, asked)}
        commands["ours"] = [sys.executable, "-m", "mlx_lm_lora_prefplus", "train", "--config", str(folder / "run.yaml")]
        taken = [{side: _measured(words, folder) for side, words in commands.items()} for _ in range(asked.repeat)]
        row: dict[str, Any] = {"case": case["name"]}
        for side in commands:
            for figure in ("cpu", "wall", "bytes"):
                row[f"{side}_{figure}"] = statistics.median(one[side][figure] for one in taken)
        rows.append(row)
        print(_line(row, "cpu", f" | {row['trl_wall']:.1f} → {row['ours_wall']:.1f}"), flush=True)
    return rows


def _measured(words: list[str], folder: Path) -> dict[str, float]:
    """CPU and wall seconds and peak memory of a process."""
    own = {**environment(), "MLX_LM_LORA_PREFPLUS_CACHE": str(folder / f"cache{time.monotonic_ns()}")}
    start = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(words, cwd=ROOT, env=own, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{(folder / 'output.txt').read_text()[-3000:]}")
    wall = time.perf_counter() - start
    scale = 1 if sys.platform == "darwin" else 1024
    return {"cpu": used.ru_utime + used.ru_stime, "wall": wall, "bytes": used.ru_maxrss * scale}


def _output(words: list[str]) -> str:
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
