"""Preference modes without a reference: `cpo`, `simpo` and `orpo`.

Sources: `cpo` Xu et al. 2024, arXiv:2401.08417; `simpo` Meng et al. 2024, arXiv:2405.14734; `orpo` Hong et al. 2024,
arXiv:2403.07691.
"""

from ..losses import NLL_WEIGHTS, OPTIONS
from .paired import PairedTrainer


def _without_reference(mode: str) -> PairedTrainer:
    return PairedTrainer(mode, OPTIONS[mode], OPTIONS[mode].table, reference=False, nll_weight=NLL_WEIGHTS[mode])


CPO, SIMPO, ORPO = map(_without_reference, ("cpo", "simpo", "orpo"))
