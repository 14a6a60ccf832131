"""Decide whether a comparison is a win, a tie or a loss. Every accuracy and win rate of this package uses this rule."""

import mlx.core as mx


def outcome(difference: mx.array, rounding: mx.array | float = 0.0) -> mx.array:
    """Return 1 for a win, 1/2 for a tie, 0 for a loss. The mean over rows is the accuracy.

    A difference that is no larger than its rounding error is a tie, because its sign is meaningless. A policy that
    equals its reference therefore has an accuracy of exactly one half. (TRL 1.16 counts every difference above 0 as a
    win and equal rewards as a loss.)

    Args:
        difference: any shape; the value that should be larger minus the value that should be smaller.
        rounding: rounding error in the unit of `difference`; of the same shape, or one number ≥ 0.

    Returns:
        float32 in the shape of `difference`; 0 where it is NaN.
    """
    won = mx.where(difference > rounding, 1.0, 0.0)
    return mx.where(mx.abs(difference) <= rounding, 0.5, won).astype(mx.float32)


def pair_rounding(first: mx.array, second: mx.array) -> mx.array:
    """Return the rounding error of a difference, √(first² + second²). first, second: the errors of its two values,
    which are independent.
    """
    return mx.sqrt(mx.square(first) + mx.square(second))


def sum_rounding(*sums: mx.array) -> mx.array:
    """Return 2 ε Σ|sum|: how much sums of log-probs may change if their terms are added in another order.

    ε is the machine epsilon of the dtype of the sums. (On one core, with and without a BLAS library, sums of up to 200
    tokens differed by up to 1.6 ε of their size.)
    """
    return 2 * mx.finfo(sums[0].dtype).eps * sum(map(mx.abs, sums[1:]), mx.abs(sums[0]))
