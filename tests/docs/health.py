"""Draws docs/health.svg: a healthy run and two sick ones. python -m tests.docs.health (needs the extra `plot`)."""

import json
import tempfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import mlx_lm_lora.train as host

from mlx_lm_lora_prefplus.host.seam.install import activate
from mlx_lm_lora_prefplus.quickstart import files
from mlx_lm_lora_prefplus.quickstart.model import make_model
from tests.docs.plots import COLOURS, GREY, STYLE, save
from tests.paths import DOCS

RUNS = {
    "healthy": {"learning_rate": 2e-4, "sft_weight": 2.0},
    "likelihood displacement": {"learning_rate": 1e-3, "sft_weight": 0.0},
    "rate too large": {"learning_rate": 2e-2, "sft_weight": 2.0},
}
SHOWN = {
    "loss": "loss (log scale)",
    "rewards/accuracies": "rewards/accuracies",
    "rewards/margins": "rewards/margins",
    "logps_per_token/chosen": "logps_per_token/chosen, nats",
}


def train(folder: Path, run: Path, **changes) -> list[dict]:
    """The validations of a run on the quick start's data."""
    config = {"data": str(folder / "data"), "adapter_path": str(run), "train": True, "train_mode": "dpo", "iters": 80}
    every = {"steps_per_eval": 5, "val_batches": -1, "batch_size": 10, "max_seq_length": 64, "fuse": False}
    host.main({"model": str(folder / "model"), **config, **every, **changes})
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line for line in lines if line.get("split") == "valid"]


def main() -> None:
    """Train and draw."""
    activate(host)
    matplotlib.use("agg")
    with tempfile.TemporaryDirectory() as name, matplotlib.rc_context(STYLE):
        folder = Path(name)
        files.write_inputs(folder)
        make_model(folder / "model")
        figure, panels = plt.subplots(2, 2, figsize=(7, 4.2), layout="constrained", sharex=True)
        for (label, changes), colour in zip(RUNS.items(), COLOURS, strict=True):
            lines = train(folder, folder / label, **changes)
            for panel, metric in zip(panels.flat, SHOWN, strict=True):
                at, heights = zip(*((line["iteration"], line[metric]) for line in lines), strict=True)
                panel.plot(at, heights, color=colour, linewidth=1.6, label=label)
        for panel, title in zip(panels.flat, SHOWN.values(), strict=True):
            panel.set_title(title, fontsize=9)
            panel.axhline(0, color=GREY, linewidth=0.5) if title != SHOWN["loss"] else panel.set_yscale("log")
        figure.supxlabel("iteration", fontsize=9)
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
        save(figure, DOCS / "health.svg")


if __name__ == "__main__":
    main()
