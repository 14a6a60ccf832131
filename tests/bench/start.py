"""CPU seconds from the start of a run to its first step, beside those of loading the model alone.

    python -m tests.bench.start DATA_FOLDER [--shape qwen2.5-0.5b] [--rows 100000] [--repeat 5]

The model has the shape's architecture with random float32 weights, and a tokenizer trained on the rows. The rows are
those of the folder, repeated with a number before each prompt. One run writes the token rows to a new cache and is not
counted. The measured processes alternate: `mlx_lm.load`; the host until it reads the data; a start without the results
of the probe; a start with them. CPU seconds are those of all threads of a process, with its imports.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mlx_lm_lora_prefplus.bench.architectures import ARCHITECTURES, layers_of
from mlx_lm_lora_prefplus.bench.workloads import Workload

from .whole_run import make_model

REPORT = "import os, sys, time\ndef report(*_, **__): print('CPU', time.process_time(), flush=True); os._exit(0)\n"
LOAD = f"{REPORT}import mlx.core as mx, mlx_lm\nmx.eval(mlx_lm.load(sys.argv.pop(1))[0].parameters())\nreport()"
HOST = f"{REPORT}import mlx_lm_lora.train as host\nhost.load_dataset = report\nhost.main()"
OURS = f"{REPORT}from mlx_lm_lora_prefplus.engine.train.loop import Loop\nLoop.begin = report\n"
OURS += "import mlx_lm_lora.train as host\nhost.main()"


def make_data(source: Path, target: Path, rows: int) -> None:
    """Write this many training rows: those of `source`, repeated with a number before each prompt."""
    target.mkdir()
    given = [json.loads(line) for line in (source / "train.jsonl").read_text("utf-8").splitlines()]
    with (target / "train.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = given[number % len(given)]
            file.write(json.dumps({**row, "prompt": f"{number} {row['prompt']}"}) + "\n")


def cpu_seconds(code: str, arguments: list[str], cache: Path, plugin: bool = True) -> float:
    """Run code in a process. Return the CPU seconds that it reports."""
    environment = {
        **os.environ,
        "MLX_LM_LORA_PREFPLUS": str(int(plugin)),
        "MLX_LM_LORA_PREFPLUS_CACHE": str(cache),
        "PYTHONDONTWRITEBYTECODE": "",  # without bytecode, imports would take twice as long
    }
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode or "CPU " not in done.stdout:
        raise RuntimeError(f"no time in the output:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return float(done.stdout.rpartition("CPU ")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.jsonl: prompt, chosen, rejected")
    parser.add_argument("--shape", choices=list(ARCHITECTURES), default="qwen2.5-0.5b")
    parser.add_argument("--layers", type=int, help="a slice of the shape (default: all layers)")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--mode", choices=["dpo", "cpo"], default="dpo")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--work", type=Path, help="keep model, rows and caches in this folder for the next time")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = asked.work or Path(name)
        model, data, cache = work / "model", work / "data", work / "cache"
        if not model.exists():
            model.mkdir(parents=True)
            size = {"shape": asked.shape, "layers": asked.layers or layers_of(asked.shape), "vocabulary": 4096}
            make_model(model, asked.data, Workload("start", asked.mode, 0, 0, 0, **size))
            make_data(asked.data, data, asked.rows)
        config = {
            **{"model": str(model), "data": str(data), "train": True, "train_mode": asked.mode, "num_layers": 4},
            **{"batch_size": 1, "iters": 2, "val_batches": 0, "max_seq_length": 256, "fuse": False},
            "adapter_path": str(Path(name) / "adapters"),
        }
        (work / "run.yaml").write_text(json.dumps(config), "utf-8")
        run = ["--config", str(work / "run.yaml")]
        cpu_seconds(OURS, run, cache)
        seconds: dict[str, list[float]] = {"load": [], "host": [], "first": [], "later": []}
        for _ in range(asked.repeat):
            seconds["load"].append(cpu_seconds(LOAD, [str(model)], cache))
            seconds["host"].append(cpu_seconds(HOST, run, cache, plugin=False))
            for kind in cache.iterdir():
                if kind.name != "tokens":
                    shutil.rmtree(kind)
            seconds["first"].append(cpu_seconds(OURS, run, cache))
            seconds["later"].append(cpu_seconds(OURS, run, cache))
            print("CPU s:", ", ".join(f"{name} {values[-1]:.2f}" for name, values in seconds.items()), flush=True)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"mlx_lm.load alone: {found['load']:.2f} CPU s; the host until it reads the data: {found['host']:.2f}")
    for name, text in {"first": "first start on this model", "later": "later start"}.items():
        ratios = f"{found[name] / found['load']:.2f}× of mlx_lm.load, {found[name] / found['host']:.2f}× of the host"
        print(f"{text}: {found[name]:.2f} CPU s to the first step, {ratios}")


if __name__ == "__main__":
    main()
