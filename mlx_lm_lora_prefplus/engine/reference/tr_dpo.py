"""A reference that follows the policy: TR-DPO (Gorbatovski et al. 2024, arXiv:2404.09656)."""

import math
from collections.abc import Iterable, Iterator, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...errors import UserError
from ...plugin import Batch, Scorer
from ..logprobs.as_in_training import as_in_training
from ..model.adapters import adapter_layers
from .precompute import Weights, as_reference, with_reference
from .store import ReferenceStore

NEGLIGIBLE = 1e-4
"""The reference is a weighted sum of earlier policies. Policies with a smaller weight than this are dropped, because
the rank of the LoRA factors would otherwise keep growing.
"""


class MovingReference:
    """Every `every` optimiser steps the reference becomes α·policy + (1 − α)·reference.

    Until the first update, the log-probs from before training are used. Afterwards, the log-probs of a batch are
    computed when the batch is used. For this, the reference's values temporarily replace the trained parameters in the
    policy's model.

    For LoRA, the products of the factors are mixed, not the factors. The mix is stored as concatenated factors, so
    their rank grows with each update.

    policy: the trained model. every: optimiser steps between updates. alpha: weight of the policy in the new reference.
    weights: returns the weight of each token of a batch.
    parameters: name → the reference's value of each trained parameter; empty before the first update.

    Raises:
        UserError: DoRA layers with alpha < 1. A mix of DoRA layers is not a DoRA layer.
    """

    def __init__(self, policy: Scorer, every: int, alpha: float, weights: Weights):
        self.policy, self.every, self.alpha, self.weights = policy, every, alpha, weights
        self.model: nn.Module = policy.model
        layers = adapter_layers(self.model)
        if alpha < 1 and any("m" in layer for layer in layers):
            raise UserError(
                "sync_ref_model: a mix of DoRA layers is not a DoRA layer. Set ref_model_mixup_alpha: 1, or "
                "train_type: lora."
            )
        # Fully trained weights start as copies of the policy's. Adapters start at zero, so they need no copy.
        self._start = {name: value for name, value in self._trained().items() if not _is_factor(name)}
        self.parameters: dict[str, mx.array] = {}

    def after_update(self, step: int) -> None:
        """If an update is due, update the reference from the policy. step: completed optimiser steps."""
        if step % self.every:
            return
        share = self.alpha
        old = self.parameters or self._start
        self.parameters = {
            name: self._mixed(name, value, old.get(name), share) for name, value in self._trained().items()
        }
        mx.eval(self.parameters)

    def _mixed(self, name: str, new: mx.array, old: mx.array | None, share: float) -> mx.array:
        if share == 1:
            return new
        result = mixed(name, (share, new), (1 - share, old))
        if not _is_factor(name):
            return result
        axis = _rank_axis(name, new)
        most = math.ceil(math.log(NEGLIGIBLE) / math.log(1 - share)) * new.shape[axis]
        return result if result.shape[axis] <= most else mx.take(result, mx.arange(most), axis=axis)

    def _trained(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self.model.trainable_parameters()))

    def fill(self, batches: Iterable[Batch], store: ReferenceStore | None) -> Iterator[Batch]:
        """Return the batches with the reference's log-probs, computed when each batch is used.

        store: the log-probs that are used until the first update.
        """
        for batch in batches:
            if self.parameters:
                yield batch.with_reference_logps(self._logps(batch))
            else:
                yield from with_reference([batch], store)

    def saved(self) -> dict[str, mx.array]:
        """Return what a run's saved state must contain of the reference."""
        return dict(self.parameters)

    def restore(self, saved: Mapping[str, mx.array]) -> None:
        """Restore what `saved` returned."""
        self.parameters = dict(saved)

    def _logps(self, batch: Batch) -> mx.array:
        with as_reference(self.model, self.parameters):
            logps = as_in_training(lambda: self.policy(batch, self.weights(batch)).all_weighted_logps)
            mx.eval(logps)
        return logps


def _is_factor(name: str) -> bool:
    return name.endswith(("lora_a", "lora_b"))


def _rank_axis(name: str, factor: mx.array) -> int:
    """Return the axis of a LoRA factor whose length is the rank."""
    return 1 if name.endswith("lora_a") else 2 * (factor.ndim == 3)


def mixed(name: str, *terms: tuple[float, mx.array | None]) -> mx.array:
    """Return Σ share · value of a trained parameter. None counts as 0.

    terms: (share, value). For LoRA, it is the products of the factors that are added. To this end, the factors of all
    terms are concatenated along the rank, and each `lora_b` is multiplied by its share.
    """
    known = [(share, value) for share, value in terms if value is not None]
    if not _is_factor(name):
        return sum((share * value for share, value in known[1:]), known[0][0] * known[0][1])
    carries = name.endswith("lora_b")
    factors = [share * value if carries and share != 1 else value for share, value in known]
    return mx.concatenate(factors, axis=_rank_axis(name, factors[0]))
