"""Modes for unpaired preferences with a reference: `kto` and `bco`.

Sources: `kto` Ethayarajh et al. 2024, arXiv:2402.01306; `bco` Jung et al. 2024, arXiv:2404.04656.
"""

from ..losses import OPTIONS
from .unpaired import UnpairedTrainer

KTO = UnpairedTrainer("kto", OPTIONS["kto"], OPTIONS["kto"].table)
BCO = UnpairedTrainer("bco", OPTIONS["bco"], OPTIONS["bco"].table)
