"""Mode `dpo`: preference against a reference (Rafailov et al. 2023, arXiv:2305.18290)."""

from ..losses import NLL_WEIGHTS, OPTIONS
from .paired import PairedTrainer

DPO = PairedTrainer("dpo", OPTIONS["dpo"], OPTIONS["dpo"].table, reference=True, nll_weight=NLL_WEIGHTS["dpo"])
