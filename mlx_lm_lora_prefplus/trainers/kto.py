"""Modes `kto` (Ethayarajh et al. 2024, arXiv:2402.01306) and `bco` (Jung et al. 2024, arXiv:2404.04656): rows that are
labelled good or bad, against a reference.
"""

from ..losses import OPTIONS
from .unpaired import UnpairedTrainer

KTO = UnpairedTrainer("kto", OPTIONS["kto"], OPTIONS["kto"].table, mismatched=True)
BCO = UnpairedTrainer("bco", OPTIONS["bco"], OPTIONS["bco"].table)
