"""What MLX raises is not lost on the way to NumPy."""

import re
from pathlib import Path

import mlx.core as mx
import numpy as np

import mlx_lm_lora_prefplus
from mlx_lm_lora_prefplus.engine.arrays import as_numpy

COMPUTED = re.compile(r"np\.(?:as)?array\((?:logps|values|side|shared|gathered|self\.sum|mx\.|outcome\()")
"""Conversions of what is computed and may not be evaluated yet."""


def test_values_and_types():
    assert as_numpy(mx.array([1, 2])).tolist() == [1, 2]
    assert as_numpy(mx.array([0.5]), np.float64).dtype == np.float64


def test_computed_arrays_go_through_it():
    package = Path(mlx_lm_lora_prefplus.__file__).parent
    found = {
        f"{file.relative_to(package)}: {match[0]}"
        for folder in ("engine", "evaluation", "trainers", "losses")
        for file in (package / folder).rglob("*.py")
        if file.name != "arrays.py"
        for match in COMPUTED.finditer(file.read_text(encoding="utf-8"))
    }
    assert found == set()
