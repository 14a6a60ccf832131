"""Preference rows: files and hub → examples → token ids on disk → batches."""

from .prepare import Split, prepare
from .tokens.report import SplitReport

__all__ = ["Split", "SplitReport", "prepare"]
