"""Draws docs/losses/plots: python -m tests.docs.plots (needs matplotlib, the extra `plot`).

The same losses give the same bytes, with the same matplotlib.
"""

import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from tests.docs.curves import curves, values
from tests.docs.pages import FOLDER, trainers

GREY = "#808080"  # on white and on black
COLOURS = ("#3b82d0", "#d9772b", "#3a9d5d")

STYLE = {
    "svg.hashsalt": "mlx-lm-lora-prefplus",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(trainer, name: str, file: Path) -> None:
    """The loss on the left, its gradient along the axis on the right."""
    shown = curves(trainer, name)
    figure, panels = plt.subplots(1, 2, figsize=(7, 2.5), layout="constrained")
    for (label, line), colour in zip(shown.lines.items(), COLOURS, strict=False):
        axis, *both = values(line, shown.ends)
        for panel, heights in zip(panels, both, strict=True):
            panel.plot(axis, heights, color=colour, linewidth=1.6, label=label or None)
    for panel, title in zip(panels, ("loss", "gradient"), strict=True):
        panel.set_title(title, fontsize=9)
        panel.axhline(0, color=GREY, linewidth=0.5)
        if shown.ends[0] < 0 < shown.ends[1]:
            panel.axvline(0, color=GREY, linewidth=0.5)
    figure.supxlabel(shown.axis, fontsize=9)
    if len(shown.lines) > 1:
        panels[0].legend(fontsize=8)
    save(figure, file)


def save(figure, file: Path) -> None:
    """Write a figure and close it."""
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if file.suffix == ".svg" else None
    figure.savefig(file, transparent=True, metadata=metadata)
    plt.close(figure)
    if file.suffix == ".svg":
        file.write_text(_short(file.read_text(encoding="utf-8")), encoding="utf-8")


def _short(svg: str) -> str:
    """Hundredths of a point are enough, and any font without serifs."""
    svg = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", svg)
    return re.sub(r"font-family: [^;]*;", "font-family: sans-serif;", svg)


def main(folder: Path = FOLDER / "plots", suffix: str = ".svg") -> None:
    """Draw all."""
    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for trainer in trainers():
            for name in trainer.losses:
                draw(trainer, name, folder / f"{trainer.mode}-{name}{suffix}")


if __name__ == "__main__":
    main()
