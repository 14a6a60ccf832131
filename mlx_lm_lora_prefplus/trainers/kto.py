"""Modes `kto` (Ethayarajh et al. 2024, arXiv:2402.01306) and `bco` (Jung et al. 2024, arXiv:2404.04656): rows that are
labelled good or bad, against a reference.
"""

from ..losses import OPTIONS
from .labelled import LabelledTrainer

KTO = LabelledTrainer("kto", OPTIONS["kto"], OPTIONS["kto"].table, mismatched=True)
BCO = LabelledTrainer("bco", OPTIONS["bco"], OPTIONS["bco"].table)
