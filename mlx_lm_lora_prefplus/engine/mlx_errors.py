"""Recognise errors of MLX by their text, because MLX has no classes for them."""

OUT_OF_MEMORY = (
    *("out of memory", "unable to allocate", "insufficient memory", "maximum allowed buffer size", "bad_alloc"),
    *("cudamalloc", "cannot allocate memory", "attempting to allocate", "cuda_error_out_of_memory"),
    "[metal::malloc] resource limit",
)
"""Phrases in MLX's errors on Metal, CUDA and the CPU, in lower case."""

STOPPED_BY_MACOS = ("impacting interactivity", "gpu timeout")
"""Phrases in MLX's errors after macOS stopped a computation on the GPU that kept the display waiting (mlx issue 3267),
in lower case.
"""

NO_GRADIENT = "vjp"
"""What MLX's errors contain if an operation has no gradient, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in OUT_OF_MEMORY)


def is_stop_by_macos(error: BaseException) -> bool:
    """Return whether an error means that macOS stopped a computation on the GPU."""
    return any(phrase in str(error).lower() for phrase in STOPPED_BY_MACOS)


def lacks_gradient(error: BaseException) -> bool:
    """Return whether an error means that MLX has no gradient of an operation."""
    return NO_GRADIENT in str(error).lower()


def raise_of_device(error: Exception) -> None:
    """Raise the error again if it comes from the device, not from the model or the method that is tested."""
    if is_out_of_memory(error) or is_stop_by_macos(error):
        raise error
