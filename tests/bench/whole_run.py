"""A whole run of `mlx_lm_lora.train`, by the host alone and with this package: time, memory, and where the time goes.

    python -m tests.bench.whole_run DATA_FOLDER [--figure docs/whole-run.svg]

Both get the same model, rows, batch size and iterations. The model is a llama, or has the first layers and the head of
`--shape`, with random weights and a tokenizer trained on the rows. The host loads the model a second time
(`reference_model_path`): without it, its reference would move with the policy. Ours reads rows, tokens and reference
log-probs anew in each repetition.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from mlx_lm.utils import save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlx_lm_lora_prefplus.bench.architectures import ARCHITECTURES
from mlx_lm_lora_prefplus.bench.workloads import Workload, make_base

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

# The host reads a key of `mx.device_info` that only Metal has. It trains on a CPU once the key is there.
HOST = (
    "import mlx.core as mx; info = mx.device_info; mx.set_wired_limit = lambda limit: 0; "
    "mx.device_info = lambda *of: {'max_recommended_working_set_size': 0, **info(*of)}; "
    "from mlx_lm_lora.train import main; main()"
)
COMMANDS = {"host": [sys.executable, "-c", HOST], "ours": [sys.executable, "-m", "mlx_lm_lora.train"]}

# The first output of each phase. Validation is what the runs print that it took.
PHASES = {
    "start and imports": None,
    "loading": r"Loading model",
    "rows": r"Loading datasets",
    "reference": r"Reference, train",
    "steps and saving": r"Training .*0/|Training mode|Training\s*\x1b",
}
VALIDATION = re.compile(r"Val took (\d+\.\d+)s")


@dataclass
class Run:
    """wall, cpu: seconds. peak: of the process, in bytes. phases: seconds of each."""

    wall: float
    cpu: float
    peak: int
    phases: dict[str, float] = field(default_factory=dict)


def make_model(folder: Path, data: Path, size: Workload) -> None:
    """Write the model and a byte-level BPE tokenizer of the rows' texts into `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    lines = (data / "train.jsonl").read_text("utf-8").splitlines()
    texts = (value for line in lines for value in json.loads(line).values() if isinstance(value, str))
    trainer = trainers.BpeTrainer(vocab_size=size.vocabulary, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0], chat_template=TEMPLATE
    ).save_pretrained(folder)
    model = make_base(size)
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(vars(model.args)), "utf-8")


def run(side: str, config: Path, work: Path) -> Run:
    """Run one command to its end. Raises RuntimeError with its last output where it fails."""
    environment = {
        **os.environ,
        "MLX_LM_LORA_PREFPLUS": str(int(side == "ours")),
        "MLX_LM_LORA_PREFPLUS_CACHE": tempfile.mkdtemp(dir=work),
        "PYTHONUNBUFFERED": "1",
    }
    command = [*COMMANDS[side], "--config", str(config), "--adapter-path", tempfile.mkdtemp(dir=work)]
    started, output, stamps = time.perf_counter(), "", {"start and imports": 0.0}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    assert process.stdout is not None
    while piece := os.read(process.stdout.fileno(), 65536):
        output += piece.decode("utf-8", "replace")
        for phase, pattern in PHASES.items():
            if pattern and phase not in stamps and re.search(pattern, output):
                stamps[phase] = time.perf_counter() - started
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{side} ended with exit code {process.returncode}:\n{output[-3000:]}")
    wall = time.perf_counter() - started
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(wall, usage.ru_utime + usage.ru_stime, peak, _durations(stamps, wall, output))


def _durations(stamps: dict[str, float], wall: float, output: str) -> dict[str, float]:
    ends = [*list(stamps.values())[1:], wall]
    durations = {phase: end - start for (phase, start), end in zip(stamps.items(), ends, strict=True)}
    validation = sum(map(float, VALIDATION.findall(output)))
    durations["steps and saving"] -= validation
    return {**durations, "validation": validation}


def median(runs: list[Run]) -> Run:
    """The median of each figure."""
    phases = {phase: statistics.median(one.phases.get(phase, 0.0) for one in runs) for phase in [*PHASES, "validation"]}
    wall, cpu, peak = (statistics.median(getattr(one, key) for one in runs) for key in ("wall", "cpu", "peak"))
    return Run(wall, cpu, int(peak), phases)


def draw(results: dict[str, Run], path: Path) -> None:
    """Write a bar of each side, with its phases."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(8, 2.2), layout="constrained")
    axes = figure.subplots()
    left = dict.fromkeys(results, 0.0)
    for phase in [*PHASES, "validation"]:
        seconds = [one.phases[phase] for one in results.values()]
        axes.barh(list(results), seconds, left=list(left.values()), label=phase)
        left = {side: left[side] + one.phases[phase] for side, one in results.items()}
    axes.set(xlabel="seconds of the whole run")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.jsonl and valid.jsonl: prompt, chosen, rejected")
    parser.add_argument("--mode", choices=["dpo", "cpo"], default="dpo")
    parser.add_argument("--iters", type=int, default=100)
    parser.add_argument("--val-batches", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--shape", choices=list(ARCHITECTURES))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--figure", type=Path, help="an SVG of the phases; needs the extra `plot`")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work, model = Path(name), Path(name) / "model"
        model.mkdir()
        size = {"hidden": asked.hidden, "layers": asked.layers, "vocabulary": asked.vocabulary, "shape": asked.shape}
        make_model(model, asked.data, Workload("run", asked.mode, 0, 0, 0, **size))
        config = {
            **{"model": str(model), "data": str(asked.data), "train": True, "train_mode": asked.mode, "fuse": False},
            **{"iters": asked.iters, "batch_size": asked.batch_size, "max_seq_length": 1024, "learning_rate": 1e-5},
            **{"steps_per_eval": asked.iters, "val_batches": asked.val_batches},
            **{"save_every": asked.iters, "steps_per_report": 10},
        }
        theirs = {**config, "reference_model_path": str(model)} if asked.mode == "dpo" else config
        (work / "ours.yaml").write_text(json.dumps(config), "utf-8")
        (work / "host.yaml").write_text(json.dumps(theirs), "utf-8")
        runs: dict[str, list[Run]] = {"host": [], "ours": []}
        for _ in range(asked.repeat):
            for side, done in runs.items():
                done.append(run(side, work / f"{side}.yaml", work))
    results = {side: median(done) for side, done in runs.items()}
    for side, one in results.items():
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in one.phases.items())
        print(f"{side}: wall {one.wall:.1f} s, CPU {one.cpu:.1f} s, peak {one.peak / 2**20:,.0f} MiB ({phases})")
    host, ours = results["host"], results["ours"]
    ratios = {"wall": host.wall / ours.wall, "CPU": host.cpu / ours.cpu, "peak": host.peak / ours.peak}
    print("host ÷ ours:", ", ".join(f"{name} {ratio:.2f}×" for name, ratio in ratios.items()))
    if asked.figure:
        draw(results, asked.figure)


if __name__ == "__main__":
    main()
