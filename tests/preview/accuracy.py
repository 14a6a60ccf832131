"""How near the forecasts of `check` come: each config is checked and then trained, both in processes of their own.

    python tests/preview/accuracy.py [--cpu-time] run1.yaml run2.yaml …

prints a row of the table in docs/check.md for each. Nothing is taken from a cache. With --cpu-time the seconds are
those of the processor, on both sides: on a machine that others use as well, the clock on the wall says little.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLOCK = "import time; time.perf_counter = time.process_time; "
COMMAND = "import sys; from mlx_lm_lora_prefplus.__main__ import main; main()"


def main(words: list[str]) -> None:
    cpu_time = "--cpu-time" in words
    print("| run | memory: forecast | measured | error | time: forecast | measured | error |")
    print("|---|---|---|---|---|---|---|")
    for config in words[int(cpu_time) :]:
        with tempfile.TemporaryDirectory() as folder:
            print(row(Path(config), Path(folder), cpu_time), flush=True)


def row(config: Path, folder: Path, cpu_time: bool) -> str:
    environment = {**os.environ, "MLX_LM_LORA_PREFPLUS_CACHE": str(folder / "cache")}
    flags = ["--adapter-path", str(folder / "adapters"), "--no-fuse", "--steps-per-report", "5"]
    python = [sys.executable, "-c", (CLOCK if cpu_time else "") + COMMAND]
    said = subprocess.run(
        [*python, "check", str(config), *flags, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    forecast = json.loads(said.stdout)["forecast"]
    shutil.rmtree(folder / "cache")
    start = clock(cpu_time)
    subprocess.run(
        [*python, "train", "--config", str(config), *flags], env=environment, capture_output=True, check=True
    )
    seconds = clock(cpu_time) - start
    lines = (folder / "adapters" / "metrics.jsonl").read_text().splitlines()
    peak = max(json.loads(line).get("peak_memory", 0) for line in lines)
    memory, whole = forecast["memory"]["peak"] / 1e9, forecast["time"]["total"]
    return (
        f"| {config.stem} | {memory:.3f} GB | {peak:.3f} GB | {memory / peak - 1:+.0%} "
        f"| {whole:.0f} s | {seconds:.0f} s | {whole / seconds - 1:+.0%} |"
    )


def clock(cpu_time: bool) -> float:
    """Seconds: of the wall, or those that child processes have had of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime if cpu_time else time.perf_counter()


if __name__ == "__main__":
    main(sys.argv[1:])
