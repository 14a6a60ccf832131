"""Preference data: read files and hub data sets, convert rows to examples, store token ids on disk, and
make batches.
"""

from .prepare import Split, prepare
from .tokens.report import SplitReport

__all__ = ["Split", "SplitReport", "prepare"]
