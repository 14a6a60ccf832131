"""Preference tuning for mlx-lm-lora: the trainers behind `mlx_lm_lora.train --train-mode cpo|dpo`.

Nothing runs at import. The rooms are described in docs/architecture.md.
"""

__version__ = "0.1.0"
