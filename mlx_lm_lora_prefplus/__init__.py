"""Preference tuning for mlx-lm-lora: the trainers of `mlx_lm_lora.train --train-mode cpo|dpo|…`.

Importing this package runs nothing. docs/architecture.md describes its folders.
"""

__version__ = "0.1.0"
