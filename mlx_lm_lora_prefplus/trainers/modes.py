"""The modes of this package.

Sources: `cpo` Xu et al. 2024, arXiv:2401.08417; `dpo` Rafailov et al. 2023, arXiv:2305.18290; `simpo` Meng et al. 2024,
arXiv:2405.14734; `orpo` Hong et al. 2024, arXiv:2403.07691; `kto` Ethayarajh et al. 2024, arXiv:2402.01306; `bco` Jung
et al. 2024, arXiv:2404.04656.
"""

from ..losses import NLL_WEIGHTS, OPTIONS
from .paired import PairedTrainer
from .unpaired import UnpairedTrainer


def _paired(mode: str, reference: bool) -> PairedTrainer:
    return PairedTrainer(mode, OPTIONS[mode], OPTIONS[mode].table, reference, nll_weight=NLL_WEIGHTS[mode])


DPO = _paired("dpo", reference=True)
CPO, SIMPO, ORPO = (_paired(mode, reference=False) for mode in ("cpo", "simpo", "orpo"))
KTO, BCO = (UnpairedTrainer(mode, OPTIONS[mode], OPTIONS[mode].table) for mode in ("kto", "bco"))
