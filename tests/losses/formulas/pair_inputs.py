"""Log-probs of pairs, and a loss with its options and its formula in float64."""

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_lm_lora_prefplus.losses.formulas import pairs
from mlx_lm_lora_prefplus.losses.inputs import Pairs
from tests.losses import in_float64 as formulas

LN2 = math.log(2)
TOKENS = np.array([3, 5, 1, 7, 2, 4])
COLUMNS = {
    "margin": np.array([0.0, 1.5, -0.5, 3.0, 0.2, 0.7]),
    "preference_prob": np.array([0.0, 1.0, 0.5, 0.8, 0.65, 0.1]),
    "chosen_score": np.array([7.0, 2.0, 0.5, 9.0, 3.0, 1.1]),
    "rejected_score": np.array([1.0, 1.5, 0.0, 8.0, -4.0, 0.1]),
    "preference_score": np.array([1.0, 0.5, 2.0, 1.5, 0.9, 0.1]),
}


@dataclass(frozen=True)
class Case:
    """at_zero: the value where the policy equals the reference (where there is none: where both are equally likely)."""

    function: Any
    options: dict[str, float]
    at_zero: float | None = None
    means: bool = False
    columns: tuple[str, ...] = ()
    separable: bool = True

    def __call__(self, x: Pairs) -> mx.array:
        return self.function(x.means() if self.means else x, **self.options)

    def oracle(self, values: np.ndarray, n_w=TOKENS, n_l=TOKENS[::-1], columns=COLUMNS) -> np.ndarray:
        """values: (4, pairs) p_w, p_l, q_w, q_l."""
        p_w, p_l, q_w, q_l = values
        if self.means:
            p_w, q_w, p_l, q_l = p_w / n_w, q_w / n_w, p_l / n_l, q_l / n_l
        rest = {name: columns[name][: len(p_w)] for name in self.columns}
        return getattr(formulas, self.function.__name__)(p_w, p_l, q_w, q_l, n_w, n_l, **self.options, **rest)


B = {"beta": 0.1}
S = {**B, "label_smoothing": 0.0}


def make_pairs(values, n_w=None, n_l=None, columns=None) -> Pairs:
    """values: (4, pairs) p_w, p_l, q_w, q_l."""
    values = np.asarray(values, np.float64)
    count = values.shape[1]
    n_w, n_l = (TOKENS if n_w is None else n_w, TOKENS[::-1] if n_l is None else n_l)
    columns = {name: mx.array(np.array(column[:count], np.float32)) for name, column in (columns or {}).items()}
    rows = (mx.array(row.astype(np.float32)) for row in values)
    return Pairs(*rows, *(mx.array(np.array(n[:count])) for n in (n_w, n_l)), columns)


def of(case: Case, values, **more) -> Pairs:
    return make_pairs(values, columns={name: COLUMNS[name] for name in case.columns}, **more)


def draw(case: Case, seed=0, spread=6.0) -> np.ndarray:
    """Log-probs that float32 holds exactly, at most 0; references of 0 where the loss looks at the policy alone."""
    values = -np.abs(np.random.default_rng(seed).normal(-14, spread, (4, 6))).round(3)
    if case.function is pairs.chi_po:
        values[:2] = values[2:] + np.random.default_rng(seed).normal(0, 1, (2, 6)).round(3)  # e^u of a size that shows
    if case.function.__module__.endswith("policy_only") or case.function is pairs.dpop_policy:
        values[2:] = 0
    return values.astype(np.float32).astype(np.float64)


def same(first, second, rtol=1e-5):
    np.testing.assert_allclose(np.array(first), np.array(second), rtol=rtol, atol=1e-6)


VALUES = draw(Case(pairs.sigmoid, S, LN2), 7)


X = make_pairs(VALUES, columns=COLUMNS)
FREE = make_pairs(np.concatenate([VALUES[:2], np.zeros((2, 6))]), columns=COLUMNS)
