"""The figures of docs/performance.md and the README."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..storage.atomic import check_writable


def check_figure(path: Path) -> None:
    """Check that a figure can be written here, before the measurement starts.

    Raises:
        UserError: matplotlib is not installed, it cannot write this kind of file, or the file cannot be written.
    """
    endings = _figure(1, 1).canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in endings:
        raise UserError(
            f"bench: --figure cannot write {path.name}. Its name must end in .{', .'.join(sorted(endings))}."
        )
    check_writable(path)


def draw_ratios(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a figure of how many times faster and smaller our step is than the host's, with the goals."""
    figure = _figure(8, 0.9 + 0.45 * len(rows))
    names = [row["workload"] for row in rows]
    kinds = [("speed", "times as fast as the host's step"), ("memory", "times less memory than the host's step")]
    for axes, (kind, label) in zip(figure.subplots(1, 2, sharey=True), kinds, strict=True):
        ratios, goals = ([row[f"{kind}_{suffix}"] for row in rows] for suffix in ("ratio", "goal"))
        bars = axes.barh(names, ratios, color="#4c78a8")
        axes.bar_label(bars, fmt="{:.1f}×", padding=3)
        with_goals = [(name, goal) for name, goal in zip(names, goals, strict=True) if goal]
        if with_goals:
            axes.scatter(*reversed(list(zip(*with_goals, strict=True))), marker="|", s=260, color="black", label="goal")
        axes.axvline(1, color="gray", linewidth=1)
        axes.set(xlabel=label, xlim=(0, 1.2 * max(ratios)))
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", frameon=False)
    _save(figure, path)


def draw_growth(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a figure of time and step memory over pairs and tokens."""
    figure = _figure(8, 6)
    kinds = [("ours_seconds", 1.0, "seconds a step"), ("ours_step_bytes", 2**20, "MiB a step")]
    names = {"pairs": "pairs in the batch", "tokens": "tokens of a row, one pair"}
    for axes, (axis, (key, unit, label)) in zip(
        figure.subplots(2, 2).flat, [(axis, kind) for axis in names for kind in kinds], strict=True
    ):
        sizes, costs = zip(*[(row["size"], row[key] / unit) for row in rows if row["axis"] == axis], strict=True)
        axes.plot(sizes, costs, "o-", label="measured")
        axes.plot(sizes, [costs[-1] * size / sizes[-1] for size in sizes], "--", color="gray", label="linear")
        axes.set(xlabel=names[axis], ylabel=label, xlim=(0, None), ylim=(0, None))
        axes.legend()
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError('bench: --figure needs matplotlib: pip install "mlx-lm-lora-prefplus[plot]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import rc_context  # pyright: ignore[reportMissingImports]

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "bench"}):  # text as text; equal bytes each time
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
