"""From MLX to NumPy, with the errors of MLX."""

from typing import Any

import mlx.core as mx
import numpy as np


def as_numpy(array: mx.array, dtype: Any = None) -> np.ndarray:
    """A computed array as NumPy's.

    NumPy's own conversion of an array that is not computed yet hides what MLX raises (mlx 0.32.4): the result is
    whatever was in memory. So the array is computed before.

    Raises:
        RuntimeError: what went wrong in computing it, such as a lost process or no memory.
    """
    mx.eval(array)
    return np.array(array, dtype)
