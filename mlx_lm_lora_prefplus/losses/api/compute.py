"""Compute the training loss from per-token log-probs in one call, with the same functions as training."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import mlx.core as mx

from ...errors import UserError
from ...validation import validated
from ..inputs import Lists, Pairs, Unpaired
from ..modifiers import token_weights, wpo_weights
from ..objective import needs_state, objective
from ..options import NLL_WEIGHTS, OPTIONS
from ..options.base import LossOptions, idle_options, loss_names
from ..running_mean import START


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
    """Return the scalar loss that training differentiates, for an optimiser step with one batch.

    Arguments:
        mode, loss_type, options: as in a config file.
        policy_token_logps, reference_token_logps: (rows, width) log-probs of the tokens (nats). In paired modes, the
        first half of the rows is chosen and the second half rejected. A reference of None means that there is no
        reference.
        completion_mask: (rows, width), true at completion tokens (default: everywhere).
        label: (rows,) for modes `kto` and `bco`: true for desirable rows.
        mismatched_logratios: (rows,) for mode `kto`: log-ratios of other rows' completions. KTO estimates its reference
            point z from them.
        columns: data columns that the loss needs, such as `margin`, each (pairs,). Losses of lists need `scores`,
            (completions, lists): row `k * lists + i` of the log-probs is completion `k` of list `i`.
        token_log_collisions: (rows, width), the log of Σ_v π(v)² over all tokens v of the vocabulary, for
            `use_weighting`. π is the policy's distribution.
        baseline: the value of the running mean of the rewards, which some losses subtract. TRL uses 0, the default.
            None uses the mean of this batch, as in the first step of a run.

    Returns:
        ().

    Raises:
        UserError: The mode, loss or an option is unknown; a value is out of bounds; there are no rows; the number of
            rows is odd where pairs are needed; shapes of arrays do not agree; or a required reference, column or label
            is missing.
    """
    chosen = _options(mode, loss_type, options)
    table, names = chosen.table, loss_names(loss_type)
    free = mode in ("cpo", "orpo", "simpo") or getattr(chosen, "reference_free", False)
    if reference_token_logps is None and not free:
        raise UserError(f"Mode {mode} needs reference_token_logps" + (", or reference_free." * (mode == "dpo") or "."))
    listwise = any(table[name].rows == "ranked" for name in names)
    paired = mode not in ("kto", "bco") and not listwise
    columns = {name: as_floats(value) for name, value in (columns or {}).items()}
    lacking = {column for name in names for column in table[name].columns} | ({"scores"} if listwise else set())
    if lacking := lacking - set(columns):
        raise UserError(f"Loss {loss_type} needs columns: {', '.join(sorted(lacking))}.")

    rows = _Tokens.of(policy_token_logps, None if free else reference_token_logps, completion_mask)
    if paired and len(rows.mask) % 2:
        raise UserError(
            f"{len(rows.mask)} rows cannot be pairs: give the chosen in the first half, the rejected in the second."
        )
    sums = _summed(rows, chosen if paired else None)
    pair_weights = None
    if paired:
        pairs = len(rows.mask) // 2
        columns = {name: _shaped(f"column {name}", value, pairs) for name, value in columns.items()}
        examples: Any = Pairs.of(sums.policy, sums.reference, sums.tokens, columns)
        if getattr(chosen, "use_weighting", False):
            pair_weights = _pair_weights(rows, sums, token_log_collisions)
    elif listwise:
        examples = _lists(sums, columns["scores"])
    else:
        examples = _unpaired(mode, sums, label, mismatched_logratios)

    count = examples[0].shape[0]
    weight = NLL_WEIGHTS.get(mode, 0.0)
    state = dict(START) if needs_state(table, chosen) else None
    if state and baseline is not None:
        state["reward_mean"] = mx.array(baseline)
    result = objective(
        table,
        chosen,
        examples,
        nll=sums.nll[:count],
        nll_weight=getattr(chosen, weight) if isinstance(weight, str) else weight,
        pair_weights=pair_weights,
        state=state,
        update=baseline is None,
    )
    units = {"examples": count, "chosen_tokens": mx.maximum(sums.tokens[:count].sum(), 1)}
    total = mx.array(0.0)
    for unit, value in result.sums.items():
        total = total + value / units[unit]
    return total


def _options(mode: str, loss_type: Any, options: Mapping[str, Any]) -> LossOptions:
    """Return the options of a mode, with the same checks as for a config file."""
    if mode not in OPTIONS:
        raise UserError(f"There is no mode {mode!r}; choose from {', '.join(OPTIONS)}.")
    kind = OPTIONS[mode]
    names = loss_names(loss_type)
    missing = [name for name in names if not isinstance(name, str) or name not in kind.table]
    fields_by_key = {field.name: field for field in fields(kind)}
    missing += [key for key in options if key not in fields_by_key]
    if missing:
        raise UserError(
            f"Mode {mode} has no loss or option {', '.join(map(repr, missing))}. Losses: "
            f"{', '.join(kind.table)}; options: {', '.join(fields_by_key)}."
        )
    chosen, wrong = validated(kind, {"loss_type": loss_type, **options})
    problems = [f"{key}: {sentence}".removeprefix(": ") for key, sentences in wrong.items() for sentence in sentences]
    changed = {key for key, value in options.items() if value != fields_by_key[key].default}
    for key, users in idle_options(kind.table, names, changed - {"beta"}).items():  # β scales the rewards of any loss
        problems.append(f"{key} is not used by {', '.join(names)}; it belongs to {', '.join(users)}")
    if options.get("router_aux_loss_coef"):
        problems.append("router_aux_loss_coef needs a model, and compute() receives only log-probs. Remove it")
    if problems:
        raise UserError(f"Mode {mode}: {'; '.join(problems)}.")
    return chosen


class _Tokens(NamedTuple):
    """The caller's arrays, (rows, width) each: log-probs (nats), and a mask that is 1 at completion tokens."""

    policy: mx.array
    reference: mx.array | None
    mask: mx.array

    @classmethod
    def of(cls, policy: Any, reference: Any, mask: Any) -> "_Tokens":
        policy = as_floats(policy)
        if policy.ndim != 2 or not len(policy):
            raise UserError(f"policy_token_logps has shape {policy.shape}. Give (rows, width) with at least one row.")
        shape = policy.shape
        return cls(
            policy,
            None if reference is None else _shaped("reference_token_logps", reference, *shape),
            _shaped("completion_mask", mx.ones(shape) if mask is None else mask, *shape),
        )

    def sums(self, values: mx.array | None, weights: mx.array | int = 1) -> mx.array:
        """Return (rows,) sums of values over the completions; zeros if there are no values. Masked positions may have
        any value.
        """
        if values is None:
            return mx.zeros(len(self.mask))
        return mx.where(self.mask > 0, weights * values, 0).sum(1)


class _Sums(NamedTuple):
    """Sums over the completions, (rows,) each. `policy` and `reference` are weighted by token; `nll` is not."""

    policy: mx.array
    reference: mx.array
    nll: mx.array
    tokens: mx.array


def _summed(rows: _Tokens, options: LossOptions | None) -> _Sums:
    """Sum log-probs over completions. options: those of a paired mode, which may weight tokens; otherwise None."""
    tokens = rows.mask.sum(1)
    token_weight = rows.mask
    pairs, width = len(rows.mask) // 2, rows.mask.shape[1]
    if options and (weights := token_weights(options, tokens, width, mx.arange(pairs))) is not None:
        place = mx.maximum(mx.cumsum(rows.mask, axis=1) - 1, 0).astype(mx.int32)
        token_weight = rows.mask * mx.take_along_axis(weights, place, axis=1)
    policy, reference = rows.sums(rows.policy, token_weight), rows.sums(rows.reference, token_weight)
    return _Sums(policy, reference, -rows.sums(rows.policy), tokens)


def _pair_weights(rows: _Tokens, sums: _Sums, log_collisions: Any) -> mx.array:
    """Return the pair weights of WPO, (pairs,)."""
    if log_collisions is None:
        raise UserError("use_weighting needs token_log_collisions.")
    collisions = rows.sums(_shaped("token_log_collisions", log_collisions, *rows.mask.shape))
    return wpo_weights(-sums.nll, collisions / mx.maximum(sums.tokens, 1), sums.tokens)


def _lists(sums: _Sums, scores: mx.array) -> Lists:
    if scores.ndim != 2 or scores.size != len(sums.tokens):
        raise UserError(
            f"Column scores has shape {scores.shape}. Give (completions, lists): one score for each of "
            f"{len(sums.tokens)} rows."
        )
    return Lists.of(scores.shape[1], sums.policy, sums.reference, sums.tokens, scores)


def _unpaired(mode: str, sums: _Sums, label: Any, mismatched_logratios: Any) -> Unpaired:
    if label is None:
        raise UserError(f"Mode {mode} needs label.")
    rows = len(sums.tokens)
    mismatched = [0.0] * rows if mismatched_logratios is None else mismatched_logratios
    mismatched = _shaped("mismatched_logratios", mismatched, rows)
    return Unpaired(sums.policy, sums.reference, sums.tokens, _shaped("label", label, rows), mismatched)


def as_floats(values: Any) -> mx.array:
    """Return an array of at least float32, because sums of many tokens need that precision."""
    array = values if isinstance(values, mx.array) else mx.array(values)
    return array if array.dtype in (mx.float32, mx.float64) else array.astype(mx.float32)


def _shaped(name: str, values: Any, *shape: int) -> mx.array:
    """Return an array of this shape. Raise UserError for any other shape, even if it could be broadcast."""
    array = as_floats(values)
    if array.shape != shape:
        raise UserError(f"{name} has shape {array.shape}. It must have shape {shape}.")
    return array
