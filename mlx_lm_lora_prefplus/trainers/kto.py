"""Modes `kto` (Ethayarajh et al. 2024, arXiv:2402.01306) and `bco` (Jung et al. 2024, arXiv:2404.04656): unpaired
preferences, compared with a reference.
"""

from ..losses import OPTIONS
from .unpaired import UnpairedTrainer

KTO = UnpairedTrainer("kto", OPTIONS["kto"], OPTIONS["kto"].table)
BCO = UnpairedTrainer("bco", OPTIONS["bco"], OPTIONS["bco"].table)
