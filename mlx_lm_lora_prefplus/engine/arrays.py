"""Convert MLX arrays to NumPy without losing MLX's errors."""

from typing import Any

import mlx.core as mx
import numpy as np


def as_numpy(array: mx.array, dtype: Any = None) -> np.ndarray:
    """Compute an MLX array and return it as a NumPy array.

    NumPy can convert an array that MLX has not computed yet. If the computation fails, that conversion hides the error
    and returns whatever was in memory (mlx 0.32.4). This function therefore computes the array first.

    Raises:
        RuntimeError: The computation failed, for example because a process was lost or memory ran out.
    """
    mx.eval(array)
    return np.array(array, dtype)
