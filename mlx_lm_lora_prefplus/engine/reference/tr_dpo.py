"""A reference that follows the policy: TR-DPO (Gorbatovski et al. 2024, arXiv:2404.09656)."""

import math
from collections.abc import Iterable, Iterator, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...errors import UserError
from ...plugin import Batch, Scorer
from ..model.adapters import adapter_layers
from .precompute import Weights, as_reference, with_reference
from .store import ReferenceStore

NEGLIGIBLE = 1e-4
"""Shares of old policies below this are dropped from a mix of LoRA factors, whose rank would grow without limit."""


class MovingReference:
    """After each `every` optimiser steps the reference becomes α·policy + (1 − α)·reference.

    Until the first update the log-probs computed before training hold; from then on those of each batch are computed
    when its turn comes, by the policy's own weights in memory with the reference's values for the trained parameters.
    LoRA products are mixed, not factors: the factors of the mix stand one behind the other, so its rank grows.

    policy: what is trained. every: optimiser steps between updates. alpha: share of the policy in the new reference.
    weights: what the tokens of a batch count in its sums.
    parameters: name → the trained parameters as the reference has them; empty before the first update.

    Raises:
        UserError: DoRA layers with alpha < 1, whose mix is no DoRA layer.
    """

    def __init__(self, policy: Scorer, every: int, alpha: float, weights: Weights):
        self.policy, self.every, self.alpha, self.weights = policy, every, alpha, weights
        self.model: nn.Module = policy.model
        layers = adapter_layers(self.model)
        if alpha < 1 and any("m" in layer for layer in layers):
            raise UserError(
                "sync_ref_model: a mix of DoRA layers is no DoRA layer. Set ref_model_mixup_alpha: 1, or take "
                "train_type: lora."
            )
        # Weights that are trained themselves begin at what the policy begins at; adapters begin at nothing.
        self._start = {name: value for name, value in self._trained().items() if not _is_factor(name)}
        self.parameters: dict[str, mx.array] = {}

    def after_update(self, step: int) -> None:
        """Take the policy into the reference, if it is time. step: optimiser steps done."""
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
        """The batches with the log-probs of the reference as it is when each is taken.

        store: those of the reference before the first update.
        """
        for batch in batches:
            if self.parameters:
                yield batch.with_reference_logps(self._logps(batch))
            else:
                yield from with_reference([batch], store)

    def saved(self) -> dict[str, mx.array]:
        """What the state of a run keeps of the reference."""
        return dict(self.parameters)

    def restore(self, saved: Mapping[str, mx.array]) -> None:
        """Take over what `saved` returned."""
        self.parameters = dict(saved)

    def _logps(self, batch: Batch) -> mx.array:
        with as_reference(self.model, self.parameters):
            logps = self.policy(batch, self.weights(batch)).all_weighted_logps
            mx.eval(logps)
        return logps


def _is_factor(name: str) -> bool:
    return name.endswith(("lora_a", "lora_b"))


def _rank_axis(name: str, factor: mx.array) -> int:
    """The axis of a LoRA factor that the factors of a product share."""
    return 1 if name.endswith("lora_a") else 2 * (factor.ndim == 3)


def mixed(name: str, *terms: tuple[float, mx.array | None]) -> mx.array:
    """Σ share · value of a trained parameter; None is 0.

    Of LoRA factors the products are added: the factors stand one behind the other, and the second carries the shares.
    """
    known = [(share, value) for share, value in terms if value is not None]
    if not _is_factor(name):
        return sum((share * value for share, value in known[1:]), known[0][0] * known[0][1])
    carries = name.endswith("lora_b")
    factors = [share * value if carries and share != 1 else value for share, value in known]
    return mx.concatenate(factors, axis=_rank_axis(name, factors[0]))
