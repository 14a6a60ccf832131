"""Preference rows: files and hub → examples → token ids on disk → batches."""

from mlx_lm_lora_prefplus.data.prepare import Split, prepare
from mlx_lm_lora_prefplus.data.report import SplitReport

__all__ = ["Split", "SplitReport", "prepare"]
