"""95 % confidence intervals of shares and means."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Z = 1.959964
"""Number of standard deviations from the mean within which 95 % of a normal distribution lie."""

RESAMPLES = 2000

Figure = dict[str, Any]
"""Keys: value; low and high (ends of the interval, None if there are too few rows); n (number of rows)."""


def share(wins: np.ndarray) -> Figure:
    """Return the share of true values with Wilson's score interval (Wilson 1927), which is also valid at 0 and 1.

    wins: (n,) bool, n ≥ 1; or values in [0, 1], where a tie is half a win. With such ties the interval is slightly too
        wide.
    """
    return wilson(float(wins.mean()), len(wins))


def wilson(p: float, n: float) -> Figure:
    """Return the share p of n rows with Wilson's score interval. If n is 0 (unknown), there is no interval."""
    if n <= 0:
        return {"value": p, "low": None, "high": None, "n": 0}
    middle, scale = p + Z * Z / (2 * n), 1 + Z * Z / n
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return {
        "value": p,
        "low": max((middle - half) / scale, 0.0),
        "high": min((middle + half) / scale, 1.0),
        "n": int(n),
    }


def difference_of_shares(first: Figure, second: Figure) -> Figure:
    """Return the second share minus the first, with the interval of Newcombe (1998, method 10).

    The interval is valid for two separate samples. If both shares come from the same rows, the true uncertainty is
    smaller, because runs tend to be right on the same rows. `n` of the result is the sum of both numbers of rows.
    """
    value, n = second["value"] - first["value"], first["n"] + second["n"]
    if first["low"] is None or second["low"] is None:
        return {"value": value, "low": None, "high": None, "n": n}
    below = math.hypot(second["value"] - second["low"], first["high"] - first["value"])
    above = math.hypot(second["high"] - second["value"], first["value"] - first["low"])
    return {"value": value, "low": value - below, "high": value + above, "n": n}


def mean(values: np.ndarray, seed: int) -> Figure:
    """Return the mean of (n,) values. Its interval consists of bootstrap percentiles (Efron 1979)."""
    return bootstrap(lambda sample: sample[0].mean(axis=-1), [values], seed)


def difference(first: np.ndarray, second: np.ndarray, seed: int) -> Figure:
    """Return the mean of `first` minus the mean of `second`. The bootstrap resamples both independently."""
    figure = bootstrap(lambda s: s[0].mean(axis=-1) - s[1].mean(axis=-1), [first, second], seed, together=False)
    return {**figure, "n": len(first) + len(second)}


def bootstrap(
    statistic: Callable[[list[np.ndarray]], np.ndarray], samples: list[np.ndarray], seed: int, *, together: bool = True
) -> Figure:
    """Return a statistic of samples with its bootstrap interval: percentiles of the statistic on rows drawn with
    replacement.

    statistic: function of arrays (…, n), one for each sample → (…).
    together: whether to draw the same rows from every sample.
    """
    value, rng, n = float(statistic(samples)), np.random.default_rng(seed), len(samples[0])
    if min(map(len, samples)) < 2:
        return {"value": value, "low": None, "high": None, "n": n}
    values = []
    for _ in range(RESAMPLES // 100):  # a hundred resamples at a time, to limit memory
        rows = rng.integers(0, n, (100, n))
        picks = [rows if together else rng.integers(0, len(sample), (100, len(sample))) for sample in samples]
        values.append(statistic([sample[pick] for sample, pick in zip(samples, picks, strict=True)]))
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "n": n}


def against(figure: Figure, chance: float) -> int:
    """Return 1 if both ends of the interval are above `chance`, −1 if both are below, otherwise 0."""
    if figure["low"] is None:
        return 0
    return int(figure["low"] > chance) - int(figure["high"] < chance)


def percentage(share: float) -> str:
    return f"{100 * share:.0f} %"


def percent(figure: Figure) -> str:
    """Format a share: 62 % [55, 69]."""
    span = "" if figure["low"] is None else f" [{100 * figure['low']:.0f}, {100 * figure['high']:.0f}]"
    return f"{100 * figure['value']:.0f} %{span}"


def of_rows(figure: Figure) -> str:
    """Format a share with its interval and rows: 62 % (95 % interval 55 to 69 %, 120 rows)."""
    return f"{100 * figure['value']:.0f} % ({interval_of_rows(figure)})"


def interval_of_rows(figure: Figure) -> str:
    """Format the interval and the rows of a share: 95 % interval 55 to 69 %, 120 rows."""
    rows = figure["n"]
    span = "" if figure["low"] is None else f"95 % interval {100 * figure['low']:.0f} to {100 * figure['high']:.0f} %, "
    return f"{span}{f'{rows:,}' if rows else 'unknown number of'} row{'s' * (rows != 1)}"


def signed(figure: Figure) -> str:
    """Format a signed value: +0.31 [0.22, 0.40]."""
    span = "" if figure["low"] is None else f" [{figure['low']:.3g}, {figure['high']:.3g}]"
    return f"{figure['value']:+.3g}{span}"
