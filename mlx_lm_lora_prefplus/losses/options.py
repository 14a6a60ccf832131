"""The config keys of the modes: names, types, bounds and defaults. Names are TRL's where TRL has them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from pydantic import BeforeValidator, Field

from . import catalogue as tables
from .loss import Loss

Number = Annotated[float, Field(allow_inf_nan=False)]
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


class WeighsTokens:
    """Marks an option that `token_weights` reads: stored reference log-probs are kept by its value."""


def weighing_options(options: Any) -> dict[str, Any]:
    """The options that are marked `WeighsTokens`, with their values."""
    hints = get_type_hints(type(options), include_extras=True)
    marked = [key for key, hint in hints.items() if WeighsTokens in getattr(hint, "__metadata__", ())]
    return {key: getattr(options, key) for key in marked}


def _listed(value: Any) -> Any:
    """`a, b` as on a command line → a list."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) and "," in value else value


LossNames = Annotated[str | list[str], BeforeValidator(_listed)]


def loss_names(value: Any) -> list[str]:
    """The losses that `loss_type` names."""
    value = _listed(value)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def idle_options(table: Mapping[str, Any], names: Collection[str], given: Iterable[str]) -> dict[str, list[str]]:
    """Those of the keys `given` that only other losses of the table use than the chosen `names`, with these losses.

    Keys of no loss at all are the mode's.
    """
    users = {
        key: [
            name
            for name, loss in table.items()
            if key in (*getattr(loss, "options", ()), *getattr(loss, "instead", ()))
        ]
        for key in given
    }
    return {key: found for key, found in users.items() if found and not set(found) & set(names)}


def borrowed_defaults(options: "LossOptions", left_alone: Collection[str]) -> list[str]:
    """A sentence for each of the keys that were `left_alone` where the losses of a list have different defaults."""
    told, names = [], [name for name in loss_names(options.loss_type) if name in options.table]
    for key in left_alone:
        value = getattr(options, key)
        own = {name: options.default_of(name, key) for name in names if key in options.table[name].options}
        if value in own.values() and len(set(own.values())) > 1:
            owner = next(name for name in own if own[name] == value)
            others = " and ".join(f"{name} (alone {own[name]:g})" for name in own if own[name] != value)
            told.append(f"{key} {value:g}, the default of {owner}, holds for {others} too; set {key} to choose it.")
    return told


@dataclass(frozen=True)
class LossOptions:
    """The config keys that every mode with a table of losses has; extend it with those of your losses.

    A key whose default is None takes that of the first chosen loss that has one, or else that of the mode.

    table: the losses of the mode; empty for a mode without defaults that belong to a loss.
    fallbacks: the mode's own defaults of keys that are None.
    """

    loss_type: Annotated[LossNames, Field(description="Which loss of the mode to train with; several as a list.")] = (
        "sigmoid"
    )
    beta: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Scale β of the log-ratio, per nat. Smaller is softer (default: that of the loss, mostly 0.1).",
        ),
    ] = None
    table: ClassVar[Mapping[str, Loss]] = {}
    fallbacks: ClassVar[Mapping[str, Any]] = {"beta": 0.1}

    def __post_init__(self):
        names = loss_names(self.loss_type)
        if not names:
            raise ValueError("loss_type: the list is empty; name at least one loss")
        if len(set(names)) < len(names):
            raise ValueError(f"loss_type: {', '.join(names)} names a loss twice; name each once")
        chosen = [self.table[name] for name in names if name in self.table]
        for field in fields(self):
            if getattr(self, field.name) is None:
                own = (row.defaults[field.name] for row in chosen if field.name in row.defaults)
                object.__setattr__(self, field.name, next(own, self.fallbacks.get(field.name)))

    def default_of(self, loss: str, key: str) -> Any:
        """What a key that is None becomes where this loss is chosen alone."""
        return self.table[loss].defaults.get(key, self.fallbacks.get(key))


@dataclass(frozen=True)
class PairedOptions(LossOptions):
    """The config keys that every paired mode has; extend it with those of your losses."""


@dataclass(frozen=True)
class SeveralOptions(PairedOptions):
    """The config keys of modes whose losses can be added to one another, with an NLL of the chosen completions."""

    loss_weights: Annotated[
        list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None,
        BeforeValidator(_listed),
        Field(description="With several losses: the weight of each (default: 1)."),
    ] = None
    sft_normalization: Annotated[
        Literal["token", "sequence"],
        Field(
            description="What the NLL of the chosen completions is averaged over: all their tokens, or the "
            "completions, each by its own mean."
        ),
    ] = "token"

    def __post_init__(self):
        super().__post_init__()
        names = loss_names(self.loss_type)
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            raise ValueError(f"loss_weights: {self.loss_weights} are not as many as the losses: {', '.join(names)}")


Smoothing = Annotated[
    float | None,
    Field(ge=0, lt=0.5, description="Share ε of preferences assumed to be wrong, in [0, 0.5) (default: 0)."),
]


@dataclass(frozen=True)
class PreferenceOptions(SeveralOptions):
    """The config keys that modes `cpo` and `dpo` share."""

    delta: Annotated[
        float | None,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="dpop: weight δ of the penalty, per nat (default: 50). slic: the margin, in nats (default: 1).",
        ),
    ] = None
    label_smoothing: Smoothing = None
    fallbacks: ClassVar[Mapping[str, Any]] = {"beta": 0.1, "delta": 50.0, "label_smoothing": 0.0}


@dataclass(frozen=True)
class DPOOptions(PreferenceOptions):
    """Config keys of mode `dpo`."""

    table: ClassVar[Mapping[str, Loss]] = tables.DPO
    dpop_lambda: Annotated[
        Number, Field(ge=0, description="dpop_paper: weight λ of the penalty inside the sigmoid.")
    ] = 50.0
    discopop_tau: Annotated[Number, Field(gt=0, description="discopop: temperature τ of the blend.")] = 0.05
    dpo_shift_lambda: Annotated[
        Number, Field(gt=0, le=1, description="dpo_shift: weight λ of the rejected log-ratio; 1 is DPO.")
    ] = 0.75
    r_dpo_alpha: Annotated[Number, Field(ge=0, description="r_dpo: penalty α of each token of length, in nats.")] = 0.01
    odpo_alpha: Annotated[Number, Field(ge=0, description="odpo: weight α of the log of the score difference.")] = 1.0
    chi_po_clip: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="chi_po: bound of the reward difference, in nats; it has no usual value.",
        ),
    ] = None
    sft_weight: Annotated[Number, Field(ge=0, description="Weight of an added NLL of the chosen completions.")] = 0.0
    reference_free: Annotated[
        bool, Field(description="Take 0 for the reference's log-probs instead of the reference model.")
    ] = False
    f_divergence_type: Annotated[
        Divergence, Field(description="The divergence that holds the policy to the reference (arXiv:2309.16240).")
    ] = "reverse_kl"
    f_alpha_divergence_coef: Annotated[
        Number, Field(description="alpha_divergence: a, which is 1 − α of the paper; near 1 it is reverse_kl.")
    ] = 0.5
    ld_alpha: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="LD-DPO: what tokens beyond the length of the shorter completion count (arXiv:2409.06411; "
            "default: 1, off).",
        ),
        WeighsTokens,
    ] = None
    sampo: Annotated[
        bool,
        Field(
            description="SamPO: sum over as many tokens of either completion as the shorter has, drawn once for each "
            "row by the seed 0 (arXiv:2406.10957)."
        ),
        WeighsTokens,
    ] = False
    use_weighting: Annotated[
        bool, Field(description="WPO: weigh each pair by how likely the policy would write it (arXiv:2406.11827).")
    ] = False
    dr_dpo_beta: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Dr. DPO: β' of −β' log mean exp(−loss/β') over the pairs of a micro-batch, against wrong "
            "labels (arXiv:2407.07880; 1 in the paper; default: off).",
        ),
    ] = None
    sync_ref_model: Annotated[
        bool, Field(description="TR-DPO: let the reference follow the policy (arXiv:2404.09656).")
    ] = False
    ref_model_sync_steps: Annotated[
        int, Field(gt=0, description="TR-DPO: optimiser steps from one update of the reference to the next.")
    ] = 512
    ref_model_mixup_alpha: Annotated[
        Number, Field(gt=0, le=1, description="TR-DPO: share of the policy in the new reference; 1 replaces it.")
    ] = 0.6

    def __post_init__(self):
        super().__post_init__()
        if self.ld_alpha is not None and self.sampo:
            raise ValueError("ld_alpha and sampo both weigh tokens: give one of them")
        if "exo_pair" in loss_names(self.loss_type) and not self.label_smoothing:
            raise ValueError("label_smoothing: exo_pair takes its log and needs more than 0; 0.001 is usual")
        if self.sync_ref_model and self.reference_free:
            raise ValueError("sync_ref_model needs a reference: leave out reference_free")
        rows = {name: self.table[name] for name in loss_names(self.loss_type) if name in self.table}
        if "chi_po" in rows and self.chi_po_clip is None:
            raise ValueError("chi_po_clip: chi_po needs it: twice the largest reward that you expect, in nats")
        if self.f_divergence_type != "reverse_kl":
            for name, row in rows.items():
                if row.function and not row.divergence:
                    able = ", ".join(name for name, row in self.table.items() if row.divergence)
                    raise ValueError(
                        f"f_divergence_type: {self.f_divergence_type} has no meaning with loss_type {name}; it can "
                        f"stand with {able}"
                    )
        if len({row.rows for row in rows.values() if row.function}) > 1:
            raise ValueError("loss_type: losses of pairs and losses of lists cannot be added")
        if "plackett_luce" in rows and (self.ld_alpha is not None or self.sampo or self.use_weighting):
            raise ValueError("ld_alpha, sampo and use_weighting are for pairs; plackett_luce takes lists")
        if self.use_weighting and (coupled := [name for name, row in rows.items() if not row.separable]):
            raise ValueError(f"use_weighting weighs pairs, and {coupled[0]} compares sorted pairs: leave one out")


@dataclass(frozen=True)
class _SimPOKeys:
    simpo_gamma: Annotated[
        float | None,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="simpo, alphapo: the margin γ by which β times the difference must win (default: 1.0 for "
            "simpo, 0.1 for alphapo).",
        ),
    ] = None
    gamma_beta_ratio: Annotated[
        float | None,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="simpo, alphapo: γ/β, instead of simpo_gamma (the SimPO repository's way of saying it).",
        ),
    ] = None
    alphapo_alpha: Annotated[
        Number, Field(description="alphapo: α of the reward (1 − exp(−α·mean log-prob))/α; 0 is simpo.")
    ] = 0.25

    def __post_init__(self):
        gamma, ratio = self.simpo_gamma, self.gamma_beta_ratio
        super().__post_init__()  # type: ignore[misc]
        if ratio is not None:
            beta: float = self.beta  # type: ignore[attr-defined]
            if gamma is not None and abs(gamma - ratio * beta) > 1e-9:
                raise ValueError("simpo_gamma and gamma_beta_ratio are two names of one thing: give one of them")
            object.__setattr__(self, "simpo_gamma", ratio * beta)


@dataclass(frozen=True)
class CPOOptions(_SimPOKeys, PreferenceOptions):
    """Config keys of mode `cpo`."""

    table: ClassVar[Mapping[str, Loss]] = tables.CPO
    cpo_alpha: Annotated[
        Number,
        Field(
            ge=0,
            description="Weight of the NLL of the chosen completions: 1 in the paper and recommended; 0 is the host's "
            "CPO.",
        ),
    ] = 0.0


@dataclass(frozen=True)
class SimPOOptions(_SimPOKeys, SeveralOptions):
    """Config keys of mode `simpo`."""

    table: ClassVar[Mapping[str, Loss]] = tables.SIMPO
    fallbacks: ClassVar[Mapping[str, Any]] = {"label_smoothing": 0.0}
    label_smoothing: Smoothing = None
    cpo_alpha: Annotated[Number, Field(ge=0, description="Weight of the NLL of the chosen completions.")] = 0.0
    loss_type: Annotated[LossNames, Field(description="Which loss of the mode to train with.")] = "simpo"


@dataclass(frozen=True)
class ORPOOptions(PairedOptions):
    """Config keys of mode `orpo`."""

    table: ClassVar[Mapping[str, Loss]] = tables.ORPO
    loss_type: Annotated[LossNames, Field(description="Which loss of the mode to train with.")] = "orpo"
    sft_normalization: Annotated[
        Literal["token", "sequence"],
        Field(
            description="What the NLL of the chosen completions is averaged over: the completions, each by its own "
            "mean (the host's and the paper's), or all their tokens."
        ),
    ] = "sequence"


@dataclass(frozen=True)
class UnpairedOptions(LossOptions):
    """The config keys that modes of unpaired rows share."""

    desirable_weight: Annotated[Number, Field(ge=0, description="Weight of desirable rows.")] = 1.0
    undesirable_weight: Annotated[Number, Field(ge=0, description="Weight of undesirable rows.")] = 1.0


@dataclass(frozen=True)
class KTOOptions(UnpairedOptions):
    """Config keys of mode `kto`."""

    table: ClassVar[Mapping[str, Loss]] = tables.KTO
    loss_type: Annotated[LossNames, Field(description="Which loss of the mode to train with.")] = "kto"


@dataclass(frozen=True)
class BCOOptions(UnpairedOptions):
    """Config keys of mode `bco`."""

    table: ClassVar[Mapping[str, Loss]] = tables.BCO
    loss_type: Annotated[LossNames, Field(description="Which loss of the mode to train with.")] = "bco"
