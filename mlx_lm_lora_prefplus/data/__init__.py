"""Preference rows: files and hub → pairs → token ids on disk."""

from mlx_lm_lora_prefplus.data.prepare import Split, SplitReport, prepare

__all__ = ["Split", "SplitReport", "prepare"]
