"""Losses with the interface of ModelScope Twinkle: objects that are called with labels and a model's outputs.

    loss = DPOLoss(beta=0.1)(inputs, outputs, ref_logps=ref_logps)["loss"]

inputs: {"labels": (rows, T) token ids}. Labels are already shifted: the label at t is the token that position t
    predicts. Positions with −100 (`ignore_index`) are ignored. Rows are interleaved: chosen, rejected, chosen,
    rejected, …
outputs: {"logps": (rows, T) log-probs of the labels (nats)} or {"logits": (rows, T', vocabulary)} with T' ≥ T. If T' >
    T, only the last T positions are used.
"""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import mlx.core as mx

from ..formulas.absolute import apo_zero
from ..formulas.pairs import hinge, sigmoid
from ..formulas.policy_only import orpo, simpo
from ..inputs import Pairs
from .compute import as_floats


class LossOutput(TypedDict):
    """loss: (). num_tokens: always 0, which tells the caller not to divide the loss: it is already a mean."""

    loss: mx.array
    num_tokens: int


class PreferenceLossBase:
    """Base class of the losses: computes log-probs of labels and completions, and separates chosen from rejected rows.

    Subclasses implement `pair_loss`. They also implement `nll_weight` to add the NLL of the chosen completions.

    Args:
        ignore_index: the label of positions that do not count.
    """

    needs_reference = False
    nll_weight = 0.0

    def __init__(self, ignore_index: int = -100):
        self.ignore_index = ignore_index

    def __call__(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        *,
        ref_outputs: Mapping[str, Any] | None = None,
        ref_logps: Any = None,
        ref_chosen_logps: Any = None,
        ref_rejected_logps: Any = None,
    ) -> LossOutput:
        """Return the mean loss over the pairs, plus `nll_weight` times the mean NLL of the chosen tokens.

        Losses without a reference accept the `ref_…` arguments and ignore them.

        Args:
            inputs, outputs: see the module docstring.
            ref_outputs: the reference's outputs, in the same form as `outputs`.
            ref_logps: (rows, T″) log-probs of the labels under the reference, an array or lists. T″ ≥ T; positions
                beyond T are cut off. Takes precedence over `ref_outputs`.
            ref_chosen_logps, ref_rejected_logps: (pairs,) sums over the completion. They take precedence over
                `ref_outputs` and `ref_logps`.

        Returns:
            {"loss": (), "num_tokens": 0}.

        Raises:
            ValueError: There are no labels, the number of rows is odd, shapes do not agree, or a required reference is
                missing.
        """
        labels = self._labels(inputs)
        token_logps = self.token_logps(outputs, labels)
        chosen, rejected = self.split_chosen_rejected(self.aggregate(token_logps, labels))
        counts = (labels != self.ignore_index).sum(-1)
        chosen_tokens, rejected_tokens = self.split_chosen_rejected(counts)
        q_w, q_l = mx.zeros_like(chosen), mx.zeros_like(rejected)
        if self.needs_reference:
            q_w, q_l = self._reference(labels, ref_outputs, ref_logps, ref_chosen_logps, ref_rejected_logps)
        dtype = chosen.dtype
        pairs = Pairs(chosen, rejected, q_w.astype(dtype), q_l.astype(dtype), chosen_tokens, rejected_tokens)
        loss = self.pair_loss(pairs).mean()
        if self.nll_weight:
            loss = loss - self.nll_weight * chosen.sum() / mx.maximum(chosen_tokens.sum(), 1)
        return {"loss": loss, "num_tokens": 0}

    def pair_loss(self, pairs: Pairs) -> mx.array:
        """Return the preference loss of each pair, (pairs,), from summed log-probs."""
        raise NotImplementedError("Implement pair_loss(self, pairs) in your loss.")

    def token_logps(self, outputs: Mapping[str, Any], labels: mx.array) -> mx.array:
        """Return (rows, T) log-probs of the labels, 0 where they are ignored; at least float32.

        If a label is outside the vocabulary of the logits, its result is NaN.

        Args:
            outputs: contains "logps" or "logits".
            labels: (rows, T).

        Raises:
            ValueError: Both "logps" and "logits" are missing, or their shape does not agree with that of the labels.
        """
        counted = labels != self.ignore_index
        if outputs.get("logps") is not None:
            logps = as_floats(outputs["logps"])
            if logps.shape != labels.shape:
                raise ValueError(
                    f"outputs['logps'] has shape {logps.shape}. It must have the shape of the labels, {labels.shape}."
                )
            return mx.where(counted, logps, 0)
        if outputs.get("logits") is None:
            raise ValueError("outputs must contain 'logps' or 'logits'.")
        logits, (rows, width) = as_floats(outputs["logits"]), labels.shape
        if logits.ndim != 3 or logits.shape[0] != rows or logits.shape[1] < width:
            raise ValueError(
                f"outputs['logits'] has shape {logits.shape}. With labels of shape {labels.shape} it must be "
                f"({rows}, at least {width}, vocabulary)."
            )
        logits = logits[:, logits.shape[1] - width :]
        inside = (labels >= 0) & (labels < logits.shape[-1])
        logits_of_labels = mx.take_along_axis(logits, mx.where(inside, labels, 0)[..., None], axis=-1)[..., 0]
        logits_of_labels = mx.where(inside, logits_of_labels, mx.nan)
        return mx.where(counted, logits_of_labels - mx.logsumexp(logits, axis=-1), 0)

    def aggregate(self, token_logps: mx.array, labels: mx.array, *, mean: bool = False) -> mx.array:
        """Return the log-prob of each completion, (rows,): the sum of its token log-probs, or with `mean` their mean.
        Ignored labels do not count.
        """
        counted = labels != self.ignore_index
        total = mx.where(counted, token_logps, 0).sum(-1)
        return total / mx.maximum(counted.sum(-1), 1) if mean else total

    def sequence_logps(self, outputs: Mapping[str, Any], labels: mx.array, *, mean: bool = False) -> mx.array:
        """Return the log-prob of each completion, (rows,), from a model's outputs, by `token_logps` and `aggregate`."""
        return self.aggregate(self.token_logps(outputs, labels), labels, mean=mean)

    def split_chosen_rejected(self, rows: mx.array) -> tuple[mx.array, mx.array]:
        """Split interleaved rows (chosen, rejected, chosen, …) into the chosen rows and the rejected rows.

        Raises:
            ValueError: The number of rows is odd.
        """
        if rows.shape[0] % 2:
            raise ValueError(f"{rows.shape[0]} rows cannot be pairs: give chosen, rejected, chosen, rejected, …")
        return rows[0::2], rows[1::2]

    def _labels(self, inputs: Mapping[str, Any]) -> mx.array:
        if inputs.get("labels") is None:
            raise ValueError("inputs must contain 'labels'.")
        labels = mx.array(inputs["labels"])
        if labels.ndim != 2 or labels.shape[0] == 0 or labels.shape[0] % 2:
            raise ValueError(
                f"labels has shape {labels.shape}. Give (rows, tokens) with an even number of rows: chosen, rejected, "
                "chosen, rejected, …"
            )
        if not mx.issubdtype(labels.dtype, mx.integer):
            raise ValueError(f"labels has dtype {labels.dtype}. Give token ids, which are integers.")
        return labels

    def _reference(
        self, labels: mx.array, outputs: Mapping[str, Any] | None, token_logps: Any, chosen: Any, rejected: Any
    ) -> tuple[mx.array, mx.array]:
        """Return the reference's summed log-probs of the chosen and of the rejected completions, (pairs,) each."""
        if (chosen is None) != (rejected is None):
            raise ValueError("Only one of ref_chosen_logps and ref_rejected_logps is given. Give both.")
        if chosen is not None:
            chosen, rejected = as_floats(chosen), as_floats(rejected)
            count = labels.shape[0] // 2
            if chosen.shape != (count,) or rejected.shape != (count,):
                raise ValueError(
                    f"ref_chosen_logps and ref_rejected_logps have shapes {chosen.shape} and {rejected.shape}. Give "
                    f"one number for each of the {count} pairs."
                )
            return chosen, rejected
        if token_logps is None and outputs is not None and outputs.get("logps") is not None:
            token_logps = outputs["logps"]
        if token_logps is not None:
            return self.split_chosen_rejected(self.aggregate(_cut(token_logps, labels.shape), labels))
        if outputs is not None:
            return self.split_chosen_rejected(self.sequence_logps(outputs, labels))
        raise ValueError(
            f"{type(self).__name__} needs a reference, and none is given. Pass ref_logps, ref_outputs, or "
            "ref_chosen_logps and ref_rejected_logps, or create the loss with reference_free=True."
        )


class DPOLoss(PreferenceLossBase):
    """DPO and variants with a reference: `sigmoid`, `hinge`, `ipo`, `kto` (also `kto_pair`).

    Δ is the chosen completion's log-ratio minus the rejected one's. `ipo` is Twinkle's: (βΔ − 1/(2β))² on summed
    log-probs. The `ipo` of the training modes is the one of TRL and of the paper's authors, (Δ − 1/(2β))² on means over
    tokens. `kto` is the loss that the training modes call `apo_zero`.

    Args:
        beta: β > 0, per nat.
        label_smoothing: ε in [0, 0.5), only for `sigmoid`.
        ignore_index: the label of positions that do not count.
        loss_type: `sigmoid`, `hinge`, `ipo`, `kto` or `kto_pair`.
        reference_free: use 0 as the reference's log-probs. A reference that is given is ignored.
        sft_weight: weight ≥ 0 of the added NLL of the chosen completions (mean over their tokens).

    Raises:
        ValueError: A value is out of bounds.

    References:
        Rafailov et al. 2023, arXiv:2305.18290, eq. 7; see the pure functions for the variants.
    """

    def __init__(
        self,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        loss_type: str = "sigmoid",
        reference_free: bool = False,
        sft_weight: float = 0.0,
    ):
        super().__init__(ignore_index)
        if loss_type not in ("sigmoid", "hinge", "ipo", "kto", "kto_pair"):
            raise ValueError(f"loss_type is {loss_type!r}. Choose one of sigmoid, hinge, ipo, kto (also kto_pair).")
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {label_smoothing}. It must be at least 0 and below 0.5.")
        if label_smoothing and loss_type != "sigmoid":
            raise ValueError(f"label_smoothing works only with loss_type 'sigmoid', not with {loss_type!r}. Remove it.")
        self.beta = _positive("beta", beta)
        self.label_smoothing = label_smoothing
        self.loss_type = loss_type
        self.reference_free = reference_free
        self.sft_weight = self.nll_weight = _not_negative("sft_weight", sft_weight)
        self.needs_reference = not reference_free

    def pair_loss(self, pairs: Pairs) -> mx.array:
        """Return the loss that `loss_type` names, (pairs,)."""
        if self.loss_type == "sigmoid":
            return sigmoid(pairs, beta=self.beta, label_smoothing=self.label_smoothing)
        if self.loss_type == "hinge":
            return hinge(pairs, beta=self.beta)
        if self.loss_type == "ipo":
            return mx.square(self.beta * pairs.delta - 1 / (2 * self.beta))
        return apo_zero(pairs, beta=self.beta)


class SimPOLoss(PreferenceLossBase):
    """SimPO without a reference: −log σ(β·d − γ). Twinkle's documentation uses beta=2.0, gamma=1.0.

    d is the chosen completion's mean log-prob minus the rejected one's.

    Args:
        beta: β > 0, per nat.
        gamma: γ, the margin in units of β·d (not γ/β).
        ignore_index: the label of positions that do not count.

    References:
        Meng et al. 2024, arXiv:2405.14734.
    """

    def __init__(self, beta: float = 2.5, gamma: float = 0.5, ignore_index: int = -100):
        super().__init__(ignore_index)
        self.beta = _positive("beta", beta)
        self.gamma = _not_negative("gamma", gamma)

    def pair_loss(self, pairs: Pairs) -> mx.array:
        """Return the SimPO loss of log-probs that are means over tokens, (pairs,)."""
        return simpo(pairs.means(), beta=self.beta, simpo_gamma=self.gamma, label_smoothing=0.0)


class CPOLoss(PreferenceLossBase):
    """CPO without a reference: −log σ(β·d) plus `cpo_alpha` times the mean NLL of the chosen tokens.

    d is the chosen completion's summed log-prob minus the rejected one's.

    Args:
        beta: β > 0, per nat.
        cpo_alpha: weight ≥ 0 of the NLL (default: 1).
        ignore_index: the label of positions that do not count.
        bc_coef: another name of `cpo_alpha`.

    Raises:
        ValueError: Both names are given, with different values.

    References:
        Xu et al. 2024, arXiv:2401.08417.
    """

    def __init__(
        self,
        beta: float = 0.1,
        cpo_alpha: float | None = None,
        ignore_index: int = -100,
        *,
        bc_coef: float | None = None,
    ):
        super().__init__(ignore_index)
        self.beta = _positive("beta", beta)
        self.cpo_alpha = self.nll_weight = _not_negative(
            "cpo_alpha", _one_of("cpo_alpha", cpo_alpha, "bc_coef", bc_coef, default=1.0)
        )

    @property
    def bc_coef(self) -> float:
        """Another name of `cpo_alpha`."""
        return self.cpo_alpha

    def pair_loss(self, pairs: Pairs) -> mx.array:
        """Return the `sigmoid` loss of the policy's log-probs alone, (pairs,)."""
        return sigmoid(pairs, beta=self.beta, label_smoothing=0.0)


class ORPOLoss(PreferenceLossBase):
    """ORPO without a reference: NLL of the chosen tokens − β·log σ(log-odds of chosen − log-odds of rejected).

    The NLL is the mean over all chosen tokens, as in Twinkle. The training mode `orpo` uses the mean over completions.

    Args:
        beta: weight ≥ 0 of the odds-ratio term (default: 0.1).
        ignore_index: the label of positions that do not count.
        lambda_orpo: another name of `beta`.

    Raises:
        ValueError: Both names are given, with different values.

    References:
        Hong et al. 2024, arXiv:2403.07691.
    """

    nll_weight = 1.0

    def __init__(self, beta: float | None = None, ignore_index: int = -100, *, lambda_orpo: float | None = None):
        super().__init__(ignore_index)
        self.beta = _not_negative("beta", _one_of("beta", beta, "lambda_orpo", lambda_orpo, default=0.1))

    @property
    def lambda_orpo(self) -> float:
        """Another name of `beta`."""
        return self.beta

    def pair_loss(self, pairs: Pairs) -> mx.array:
        """Return the ORPO loss of log-probs that are means over tokens, (pairs,)."""
        return orpo(pairs.means(), beta=self.beta)


def _cut(token_logps: Any, shape: tuple[int, ...]) -> mx.array:
    """Cut the reference's log-probs to the shape of the labels. They may be an array, or lists of any lengths."""
    rows, width = shape
    lengths = [len(row) for row in token_logps]
    if len(lengths) != rows or min(lengths) < width:
        raise ValueError(
            f"ref_logps has {len(lengths)} rows of at least {min(lengths, default=0)} tokens, but the labels have "
            f"{rows} rows of {width}. Give as many rows, each at least as long (longer rows are cut)."
        )
    if isinstance(token_logps, mx.array):
        return as_floats(token_logps[:, :width])
    return mx.stack([as_floats(row)[:width] for row in token_logps])


def _one_of(name: str, value: float | None, alias: str, other: float | None, *, default: float) -> float:
    if value is not None and other is not None and value != other:
        raise ValueError(
            f"{name} is {value} and {alias} is {other}, but they are two names of the same option. Give one."
        )
    return next((one for one in (value, other) if one is not None), default)


def _positive(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}. It must be above 0 and finite.")
    return value


def _not_negative(name: str, value: float) -> float:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}. It must be at least 0 and finite.")
    return value
