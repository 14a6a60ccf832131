"""One call from per-token log-probs to the training loss, through the functions that training uses."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from pydantic import TypeAdapter, ValidationError

from ..errors import UserError
from . import options as keys
from .examples import Labelled, Lists, Pairs
from .objective import needs_state, objective, token_weights, wpo_weights
from .options import loss_names
from .running import START

OPTIONS: dict[str, type[keys.LossOptions]] = {
    "cpo": keys.CPOOptions,
    "dpo": keys.DPOOptions,
    "orpo": keys.ORPOOptions,
    "simpo": keys.SimPOOptions,
    "kto": keys.KTOOptions,
    "bco": keys.BCOOptions,
}
"""The config keys of each mode."""

NLL_WEIGHTS: dict[str, str | float] = {"cpo": "cpo_alpha", "dpo": "sft_weight", "orpo": 1.0, "simpo": "cpo_alpha"}
"""What weighs the NLL of the chosen completions in a mode: a config key, or a number."""


def compute(
    mode: str,
    loss_type: str | list[str],
    policy_token_logps: mx.array,
    reference_token_logps: mx.array | None = None,
    completion_mask: mx.array | None = None,
    *,
    label: Any = None,
    mismatched_logratios: Any = None,
    columns: Mapping[str, Any] | None = None,
    token_log_collisions: mx.array | None = None,
    baseline: float | None = 0.0,
    **options: Any,
) -> mx.array:
    """The scalar loss that training would take its gradient of, for one optimiser step of one batch.

    Arguments:
        mode, loss_type, options: as in a config file.
        policy_token_logps, reference_token_logps: (rows, width) log-probs of the tokens (nats). Paired modes: chosen in
            the first half of the rows, rejected in the second. No reference: None.
        completion_mask: (rows, width), true at completion tokens (default: everywhere).
        label: (rows,) of modes `kto` and `bco`: true for desirable rows.
        mismatched_logratios: (rows,) of mode `kto`: log-ratios of other rows' completions, for its z.
        columns: data columns that the loss needs, such as `margin`, (pairs,) each; for losses of lists `scores`,
            (completions, lists): row `k * lists + i` is completion `k` of list `i`.
        token_log_collisions: (rows, width), log Σ_v π(v)², for `use_weighting`.
        baseline: what losses with a running mean of the rewards take for it (0, the default, is TRL's; None: the mean
            of this batch, as in the first step of a run).

    Returns:
        ().

    Raises:
        UserError: an unknown mode, loss or option, a value out of bounds, no rows, rows that are no pairs, shapes that
            do not fit, or no reference, column or label where one is needed.
    """
    if mode not in OPTIONS:
        raise UserError(f"There is no mode {mode!r}; choose from {', '.join(OPTIONS)}.")
    kind = OPTIONS[mode]
    names = loss_names(loss_type)
    unknown = [name for name in names if not isinstance(name, str) or name not in kind.table]
    unknown_keys = [key for key in options if key not in kind.__dataclass_fields__]
    if unknown or unknown_keys:
        raise UserError(
            f"Mode {mode} has no loss or option {', '.join(map(repr, unknown + unknown_keys))}. Losses: "
            f"{', '.join(kind.table)}; options: {', '.join(kind.__dataclass_fields__)}."
        )
    try:
        chosen: Any = TypeAdapter(kind).validate_python({"loss_type": loss_type, **options})
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}".replace("Value error, ", "").removeprefix(": ")
            for one in error.errors()
        ]
        raise UserError(f"Mode {mode}: {'; '.join(told)}.") from None
    free = mode in ("cpo", "orpo", "simpo") or getattr(chosen, "reference_free", False)
    if reference_token_logps is None and not free:
        raise UserError(f"Mode {mode} needs reference_token_logps" + (", or reference_free." * (mode == "dpo") or "."))

    policy_token_logps = _array(policy_token_logps)
    if policy_token_logps.ndim != 2 or not len(policy_token_logps):
        raise UserError(
            f"policy_token_logps have shape {policy_token_logps.shape}; give (rows, width), a row at least."
        )
    rows, width = policy_token_logps.shape
    mask = _shaped(
        "completion_mask", mx.ones((rows, width)) if completion_mask is None else completion_mask, rows, width
    )
    tokens = mask.sum(1)
    columns = {name: _array(value) for name, value in (columns or {}).items()}
    listwise = any(kind.table[name].rows == "ranked" for name in names)
    lacking = {column for name in names for column in kind.table[name].columns} | ({"scores"} if listwise else set())
    lacking -= set(columns)
    if lacking:
        raise UserError(f"Loss {loss_type} needs columns: {', '.join(sorted(lacking))}.")
    paired = mode not in ("kto", "bco") and not listwise
    if paired and rows % 2:
        raise UserError(f"{rows} rows are no pairs: give the chosen in the first half, the rejected in the second.")
    weights = token_weights(chosen, tokens, width, mx.arange(rows // 2)) if paired else None
    weighing = mask
    if weights is not None:
        place = mx.maximum(mx.cumsum(mask, axis=1) - 1, 0).astype(mx.int32)
        weighing = mask * mx.take_along_axis(weights, place, axis=1)
    policy = mx.where(mask > 0, weighing * policy_token_logps, 0).sum(1)
    reference = mx.zeros(rows)
    if reference_token_logps is not None and not free:
        given = _shaped("reference_token_logps", reference_token_logps, rows, width)
        reference = mx.where(mask > 0, weighing * given, 0).sum(1)
    nll = -mx.where(mask > 0, policy_token_logps, 0).sum(1)

    weight = NLL_WEIGHTS.get(mode, 0.0)
    nll_weight = getattr(chosen, weight) if isinstance(weight, str) else weight
    pair_weights = None
    if paired:
        (p_w, p_l), (q_w, q_l), (n_w, n_l) = (mx.split(value, 2) for value in (policy, reference, tokens))
        given = {name: _shaped(f"column {name}", value, rows // 2) for name, value in columns.items()}
        examples: Any = Pairs(p_w, p_l, q_w, q_l, n_w, n_l, given)
        if getattr(chosen, "use_weighting", False):
            if token_log_collisions is None:
                raise UserError("use_weighting needs token_log_collisions.")
            collisions = _shaped("token_log_collisions", token_log_collisions, rows, width)
            collisions = mx.where(mask > 0, collisions, 0).sum(1) / mx.maximum(tokens, 1)
            pair_weights = wpo_weights(-nll, collisions, tokens)
    elif listwise:
        scores = columns["scores"]
        if scores.ndim != 2 or scores.size != rows:
            raise UserError(
                f"Column scores has shape {scores.shape}; give (completions, lists), a score for each of {rows} rows."
            )
        count, scores = scores.shape[1], scores.reshape(-1)
        examples = Lists(*(value.reshape(-1, count).T for value in (policy, reference, tokens, scores)))
    else:
        if label is None:
            raise UserError(f"Mode {mode} needs label.")
        mismatched = _shaped(
            "mismatched_logratios", [0.0] * rows if mismatched_logratios is None else mismatched_logratios, rows
        )
        examples = Labelled(policy, reference, tokens, _shaped("label", label, rows), mismatched)

    examples_count = examples[0].shape[0]
    state = dict(START) if needs_state(kind.table, chosen) else None
    if state and baseline is not None:
        state["reward_mean"] = mx.array(baseline)
    result = objective(
        kind.table,
        chosen,
        examples,
        nll=nll[:examples_count],
        nll_weight=nll_weight,
        pair_weights=pair_weights,
        state=state,
        update=baseline is None,
    )
    units = {"examples": examples_count, "chosen_tokens": mx.maximum(tokens[:examples_count].sum(), 1)}
    total = mx.array(0.0)
    for unit, value in result.sums.items():
        total = total + value / units[unit]
    return total


def _array(values: Any) -> mx.array:
    """An array of at least float32: sums of many tokens need it."""
    array = values if isinstance(values, mx.array) else mx.array(values)
    return array if array.dtype in (mx.float32, mx.float64) else array.astype(mx.float32)


def _shaped(name: str, values: Any, *shape: int) -> mx.array:
    """An array of this shape, or a UserError: arrays of other shapes may fit by broadcasting, and mean nothing."""
    array = _array(values)
    if array.shape != shape:
        raise UserError(f"{name}: the shape is {array.shape}, and must be {shape}.")
    return array
