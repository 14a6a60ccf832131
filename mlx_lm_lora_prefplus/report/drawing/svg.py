"""Draw a chart as inline SVG. The chart needs no script; `page.js` only shows the values at the pointer."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from ..results.runs import RunRecord
from .charts import SMOOTHED_FROM, Chart, Point, Series, series

WIDTH, HEIGHT = 400.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 12.0, 10.0, 30.0
"""Size of a chart and its margins. One unit is about one pixel on a phone, so text is as large as elsewhere on the
page.
"""

COLOURS = 8
"""Number of colours in `page.css` (.c0 to .c7): the palette of Okabe and Ito (2008), safe for colour blindness."""

MARKS = (
    "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0",
    "M-2.7 -2.7h5.4v5.4h-5.4z",
    "M0 -3.6l3.3 5.9h-6.6z",
    "M0 -3.7l3.7 3.7l-3.7 3.7l-3.7 -3.7z",
)
"""Shapes that mark validation points, centred on the origin. Each run has another shape."""

LOGARITHMIC_FROM = 50
"""An axis is logarithmic if all values are positive and the largest is at least this many times their median."""

SMALLEST = 1e-300
"""Smallest length of an axis. Smaller numbers lose their digits."""

NEAR = 22.0
"""Smallest distance between the labels of two iterations."""


class Axis(NamedTuple):
    """low, high: values at the ends. start, end: coordinates of the ends in the chart."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        low, high, value = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round numbers within the axis: about four, or powers of ten."""
        if self.logarithmic:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**power for power in powers if (power - powers[0]) % (1 + len(powers) // 6) == 0]
        ticks: list[float] = []
        for parts in (4, 6):
            step = _round_step((self.high - self.low) / parts)
            first = math.ceil(self.low / step - 1e-9)
            ticks = [place * step for place in range(first, math.floor(self.high / step + 1e-9) + 1)]
            if len(ticks) > 2:
                break
        return ticks


def draw(chart: Chart, runs: Sequence[RunRecord]) -> str:
    """Return the SVG element of a chart; empty if there is nothing to draw."""
    lines = series(chart, runs)
    if not lines:
        return ""
    points = [point for line in lines for point in line.points]
    bounds = [end for line in lines for _, *ends in line.intervals for end in ends]
    values = [*(y for _, y in points), *bounds, *([0.0] if chart.from_zero else [])]
    x = _axis([x for x, _ in points], LEFT, WIDTH - RIGHT, tight=True)
    y = _axis(values, HEIGHT - BOTTOM, TOP, guides=chart.guides)
    elements = [_grid(x, y), _guides(chart, y), *(_line(line, chart, runs, x, y) for line in lines)]
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(_describe(chart, lines))}" '
        f'data-x="{x.low} {x.high} {x.start} {x.end}" data-y="{TOP} {HEIGHT - BOTTOM}">{"".join(elements)}</svg>'
    )


def number(value: float) -> str:
    """Format a number with three significant digits."""
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def labels(ticks: Sequence[float]) -> list[str]:
    """Format the ticks of an axis, all with the same number of decimals, or in powers of ten."""
    largest = max(map(abs, ticks), default=0.0)
    if largest and not 0.001 <= largest < 1e6:
        return [number(tick) if tick else "0" for tick in ticks]
    steps = [abs(b - a) for a, b in pairwise(ticks)]
    smallest = min([*steps, largest or 1.0])
    decimals = max(0, -math.floor(math.log10(smallest) + 1e-9))
    return [f"{tick + 0.0:,.{decimals}f}".replace("-", "−") for tick in ticks]


def swatch(colour: int, *, mark: int | None = None, dashed: bool = False, thin: bool = False) -> str:
    """Return a short line for a legend."""
    shape = (
        f'<path class="mark" d="{MARKS[mark % len(MARKS)]}" transform="translate(12 5)"/>' if mark is not None else ""
    )
    kind = "train" if thin else "mean"
    return (
        f'<svg class="swatch c{colour % COLOURS}" viewBox="0 0 24 10" aria-hidden="true">'
        f'<path class="{kind}{" dashed" if dashed else ""}" d="M1 5H23"/>{shape}</svg>'
    )


def colour(chart: Chart, part: int, split: str, several: int | None) -> int:
    """Return the colour of a line. With several runs, each run has a colour. several: position of the run; None for a
    single run.

    With a single run, each part of the chart has a colour. If the chart has only one part, training and validation have
    different colours.
    """
    if several is not None:
        return several % COLOURS
    if len(chart.parts) > 1:
        return (2 + part) % COLOURS
    return int(split == "valid")


def _axis(values: list[float], start: float, end: float, *, tight: bool = False, guides: Iterable[float] = ()) -> Axis:
    """Return an axis that contains all values with some padding. tight: no padding, as for iterations."""
    low, high = min(values), max(values)
    if tight:
        return Axis(low, high, start, end) if high > low else Axis(low - 0.5, low + 0.5, start, end)
    middle = sorted(values)[len(values) // 2]
    if low > 0 and high / middle >= LOGARITHMIC_FROM:
        return Axis(low / 1.3, high * 1.3, start, end, logarithmic=True)
    if math.isclose(low, high, rel_tol=1e-6, abs_tol=1e-12):  # equal values: from zero to 25 % beyond them
        low, high = min(0, 1.25 * low), max(0, 1.25 * high)
        return Axis(low, high if high - low > SMALLEST else 1.0, start, end)
    near = [value for value in guides if 2 * low - high <= value <= 2 * high - low]
    low, high = min([low, *near]), max([high, *near])
    air = 0.06 * (high - low)
    return Axis(max(0.0, low - air) if low >= 0 else low - air, high + air, start, end)


def _round_step(step: float) -> float:
    """Round a step up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _grid(x: Axis, y: Axis) -> str:
    across, down = y.ticks(), [tick for tick in x.ticks() if tick == int(tick)]
    if x.low == int(x.low) and all(x(tick) - x.start > NEAR for tick in down):
        down.insert(0, x.low)
    lines = [f'<path class="grid" d="{"".join(f"M{LEFT:.0f} {y(tick):.1f}H{WIDTH - RIGHT:.0f}" for tick in across)}"/>']
    lines += [
        f'<text class="y" x="{LEFT - 6:.0f}" y="{y(tick) + 4:.1f}">{label}</text>'
        for tick, label in zip(across, map(number, across) if y.logarithmic else labels(across), strict=True)
    ]
    lines += [
        f'<text class="x" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16:.0f}">{label}</text>'
        for tick, label in zip(down, labels(down), strict=True)
    ]
    lines.append(f'<text class="x name" x="{WIDTH - RIGHT:.0f}" y="{HEIGHT - 1:.0f}">iteration</text>')
    if y.logarithmic:
        lines.append(f'<text class="note name" x="{WIDTH - RIGHT:.0f}" y="{TOP + 8:.0f}">logarithmic</text>')
    return "".join(lines)


def _guides(chart: Chart, y: Axis) -> str:
    visible = {value: label for value, label in chart.guides.items() if y.low <= value <= y.high}
    return "".join(
        f'<path class="guide" d="M{LEFT:.0f} {y(value):.1f}H{WIDTH - RIGHT:.0f}"/>'
        f'<text class="note name" x="{WIDTH - RIGHT:.0f}" y="{y(value) + 11:.1f}">{escape(label)}</text>'
        for value, label in visible.items()
    )


def _line(line: Series, chart: Chart, runs: Sequence[RunRecord], x: Axis, y: Axis) -> str:
    """Return the SVG of a line. It includes the values as data for `page.js`."""
    part = list(chart.parts)[line.part]
    names = [runs[line.run].name if len(runs) > 1 else "", part, "validation" if line.split == "valid" else "training"]
    dashed = " dashed" if line.part else ""
    places = [(x(a), y(b)) for a, b in line.points]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    kind = line.split
    if kind == "train" and not (chart.noisy and len(line.points) >= SMOOTHED_FROM):
        kind = "train only"  # a line without a running mean
    shapes = "".join(f'<path class="interval" d="M{x(a):.1f} {y(b):.1f}V{y(c):.1f}"/>' for a, b, c in line.intervals)
    shapes += f'<path class="{kind}{dashed}" d="{path}"/>'
    if line.split == "valid" or len(places) == 1:
        mark = MARKS[line.run % len(MARKS)]
        shapes += "".join(f'<path class="mark" d="{mark}" transform="translate({a:.1f} {b:.1f})"/>' for a, b in places)
    # The running mean carries no values: the training line has them.
    values = "" if line.split == "mean" else f' data-points="{_values(line.points)}"'
    name = escape(" ".join(filter(None, names)))
    hue = colour(chart, line.part, line.split, line.run if len(runs) > 1 else None)
    return f'<g class="c{hue}" data-name="{name}"{values}>{shapes}</g>'


def _values(points: list[Point]) -> str:
    return " ".join(f"{x:.0f}:{y:.4g}" for x, y in points)


def _describe(chart: Chart, lines: list[Series]) -> str:
    """Describe the chart in words, for screen readers."""
    spans = [f"{number(line.points[0][1])} to {number(line.points[-1][1])}" for line in lines if line.split != "mean"]
    return f"{chart.title}, first to last of each line: {'; '.join(spans)}"
