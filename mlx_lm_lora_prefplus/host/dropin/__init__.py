"""The host's training functions for programs that call them: the same names, signatures, payloads and files.

`train_*` and `evaluate_*` come from this package, and so do the two losses whose metrics are wrong in the host.
Everything else is the host's. `from mlx_lm_lora_prefplus.host.dropin import train_dpo` replaces `from
mlx_lm_lora.trainer.dpo_trainer import train_dpo`. With MLX_LM_LORA_PREFPLUS_PATCH=1, the import from
`mlx_lm_lora` also returns this package's function.
"""

from mlx_lm_lora.trainer.cpo_trainer import (
    CPOTrainingArgs,  # pyright: ignore[reportPrivateImportUsage]
    cpo_loss_from_model,
    iterate_cpo_batches,
)
from mlx_lm_lora.trainer.dpo_trainer import DPOTrainingArgs, compute_score, get_token_scores, iterate_dpo_batches
from mlx_lm_lora.trainer.orpo_trainer import (
    ORPOTrainingArgs,
    get_logps,
    iterate_orpo_batches,
    orpo_loss,
    orpo_loss_from_model,
)

from ...backend import allow_many_shapes
from .evaluate import evaluate_cpo, evaluate_dpo, evaluate_orpo
from .losses import cpo_loss, dpo_loss
from .train import train_cpo, train_dpo, train_orpo

allow_many_shapes()

__all__ = [
    "CPOTrainingArgs",
    "DPOTrainingArgs",
    "ORPOTrainingArgs",
    "compute_score",
    "cpo_loss",
    "cpo_loss_from_model",
    "dpo_loss",
    "evaluate_cpo",
    "evaluate_dpo",
    "evaluate_orpo",
    "get_logps",
    "get_token_scores",
    "iterate_cpo_batches",
    "iterate_dpo_batches",
    "iterate_orpo_batches",
    "orpo_loss",
    "orpo_loss_from_model",
    "train_cpo",
    "train_dpo",
    "train_orpo",
]
