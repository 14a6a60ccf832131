"""Rewards and log-probs of policy and reference on held-out rows."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..data import Split
from ..engine.arrays import as_numpy
from ..engine.logprobs.as_in_training import as_in_training
from ..engine.reference.precompute import reference_logps, with_reference
from ..engine.reference.store import ReferenceStore
from ..errors import UserError
from ..host import models, trained
from ..host.config.resolve import Resolved
from ..host.output.previous import as_begun
from ..host.run.load import check_start
from ..host.run.references import ReferencePass
from ..host.run.rows import tokenised
from ..host.run.session import Session
from ..losses import has_gold, outcome, pair_rounding
from ..plugin import Batch
from ..report.results import intervals
from ..report.results.intervals import Figure
from ..trainers.paired import chosen_and_rejected
from ..trainers.tabled import reward_rounding

BUCKETS = 4
"""Number of groups into which rows are divided by length. The groups have about equal size."""


class HeldOut(NamedTuple):
    """Scores of two completions of each row: chosen and rejected, or the best and the worst of a list. An unpaired row
    has its only completion twice.

    rewards, rounding, policy, reference, tokens: each (rows, 2): rewards, their rounding errors, log-probs of policy
    and of reference (nats, summed) and token counts.
    base: rewards of the model before training; 0 if rewards are relative to a reference. label: (rows,) 1 or 0, for
        unpaired rows.
    """

    rewards: np.ndarray
    rounding: np.ndarray
    policy: np.ndarray
    reference: np.ndarray
    tokens: np.ndarray
    base: np.ndarray
    label: np.ndarray | None

    def part(self, rows: np.ndarray) -> "HeldOut":
        """Return only the rows that a mask selects. rows: (rows,) bool."""
        *values, label = (None if column is None else column[rows] for column in self)
        return HeldOut(*values, label)  # type: ignore[arg-type]


def open_held_out(resolved: Resolved) -> tuple[Session, Split, str]:
    """Load the base model and the held-out rows: test, or valid if there is no test split.

    Returns:
        The session, whose only split is called test; the split; and its real name.

    Raises:
        UserError: There are neither test nor valid rows, or the model or the data cannot be loaded.
    """
    resolved = as_begun(resolved)
    settings = resolved.settings.model_copy(update={"train": False, "test": True})
    if not resolved.set_by_user("test_batches"):
        settings = settings.model_copy(update={"test_batches": -1})
    check_start(settings)
    model, tokenizer = models.load_base(settings, resolved.data)
    for name in ("test", "valid"):
        splits = tokenised(resolved, tokenizer, [name])
        if split := splits.get(name):
            session = Session(resolved._replace(settings=settings), model, tokenizer, {"test": split.rows})
            return session, split, name
    raise UserError(
        f"There are neither test nor valid rows in {resolved.data.hf_dataset or resolved.data.data}. Give a folder "
        "with test.jsonl, whose rows were not used for training."
    )


def score(session: Session) -> HeldOut:
    """Score the rows with the reference. Then load the trained adapters, and score the same rows with the policy."""
    resolved, computed_by = session.resolved, session.engine.policy
    trainer = resolved.trainer
    reference = ReferencePass(session).source().stored["test"]
    stored_logps = reference
    if reference is None or session.token_weights(next(session.batches("test"))) is not None:
        stored_logps = ReferenceStore(None, len(session.rows["test"]), completions=session.completions("test"))
        reference_logps(
            computed_by, session.batches("test"), len(session.rows["test"]), "Base model", store=stored_logps
        )
    assert resolved.settings.adapter_path
    trained.load_trained(session.model, resolved.settings.adapter_path)
    session.model.eval()
    columns_: dict[str, list[np.ndarray]] = {name: [] for name in (*HeldOut._fields, "ids")}
    for batch, reference_batch in zip(
        with_reference(session.batches("test"), reference),
        with_reference(session.batches("test"), stored_logps),
        strict=True,
    ):
        batch = batch._replace(mismatched=None)  # rewards do not use completions of other rows
        scores = as_in_training(lambda batch=batch: computed_by(batch, session.token_weights(batch)))
        untrained = scores._replace(
            logps=reference_batch.reference_logps, weighted_logps=reference_batch.reference_logps
        )
        rewards = trainer.rewards(scores, batch, resolved.options)
        base = trainer.rewards(untrained, batch, resolved.options) if reference is None else mx.zeros_like(rewards)
        for name, values in (
            ("rewards", rewards),
            ("rounding", reward_rounding(trainer, session.model, scores, batch, resolved.options)),
            ("base", base),
            ("policy", scores.logps),
            ("reference", reference_batch.reference_logps),
            ("tokens", batch.completion_lengths),
        ):
            columns_[name].append(_sides(values, batch, has_gold(trainer.losses, resolved.options)))
        columns_["label"].append(np.array(batch.columns["label"]) if "label" in batch.columns else np.zeros(0))
    columns = {name: np.concatenate(columns_[name]) for name in HeldOut._fields}
    return HeldOut(**{**columns, "label": columns["label"] if len(columns["label"]) else None})


def _sides(values: mx.array, batch: Batch, gold: bool) -> np.ndarray:
    """Return the values of the chosen and of the rejected completion, (examples, 2) float64."""
    if "label" in batch.columns:  # an unpaired row has only one completion
        values = mx.tile(values, 2)
        return as_numpy(values.astype(mx.float32), np.float64).reshape(2, -1).T
    return np.stack(
        [as_numpy(side.astype(mx.float32), np.float64) for side in chosen_and_rejected(values, batch, gold)], axis=1
    )


def summary(held_out: HeldOut, seed: int) -> dict[str, Any]:
    """Return accuracy and margin with intervals, for all rows and by length, and how log-probs differ from the
    reference's.
    """
    figures: dict[str, Any] = _rewards(held_out, seed)
    before = _rewards(held_out._replace(rewards=held_out.base), seed)
    figures["before"] = {
        "accuracy": before["accuracy"]["value"],
        "margin": before["margin"]["value"] if before["margin"] else 0.0,
    }
    longest = held_out.tokens.max(axis=1)
    edges = np.unique(np.quantile(longest, np.linspace(0, 1, BUCKETS + 1)[1:-1], method="lower"))
    places = np.searchsorted(edges, longest, side="left")
    figures["by_length"] = []
    for place in np.unique(places):
        rows = places == place
        part = held_out.part(rows)
        span = {"from": int(longest[rows].min()), "to": int(longest[rows].max())}
        figures["by_length"].append({**span, **_rewards(part, seed)})
    figures["shift"] = _shift(held_out, seed)
    if held_out.label is None:
        figures["ranked_by_log_prob"] = {
            name: intervals.share(_outcome(-np.diff(logps / np.maximum(held_out.tokens, 1), axis=1)[:, 0]))
            for name, logps in (("reference", held_out.reference), ("policy", held_out.policy))
        }
    return figures


def _rewards(held_out: HeldOut, seed: int) -> dict[str, Any]:
    """Return accuracy and margin of the rewards, with intervals.

    accuracy: share of pairs whose chosen completion has the higher reward, or of unpaired rows whose reward has the
        sign of the label (see `losses.accuracy`). margin: mean reward of chosen minus that of rejected, or mean reward
        of desirable minus that of undesirable rows; None if no row has one of these labels.
    """
    chosen, rejected = held_out.rewards.T
    if held_out.label is None:
        off = pair_rounding(*map(mx.array, held_out.rounding.T))
        return {
            "accuracy": intervals.share(_outcome(chosen - rejected, off)),
            "margin": intervals.mean(chosen - rejected, seed),
        }
    good = held_out.label > 0
    both = good.any() and not good.all()
    return {
        "accuracy": intervals.share(_outcome(np.where(good, chosen, -chosen), mx.array(held_out.rounding[:, 0]))),
        "margin": intervals.difference(chosen[good], chosen[~good], seed) if both else None,
    }


def _outcome(difference: np.ndarray, rounding: mx.array | float = 0.0) -> np.ndarray:
    """Return the outcomes, (rows,) float64; see `losses.accuracy`."""
    return as_numpy(outcome(mx.array(difference), rounding), np.float64)


def _shift(held_out: HeldOut, seed: int) -> dict[str, Figure]:
    """Return the mean of policy minus reference log-probs (nats per token), for each kind of completion."""
    moved = (held_out.policy - held_out.reference) / np.maximum(held_out.tokens, 1)
    if held_out.label is None:
        sides = {"chosen": moved[:, 0], "rejected": moved[:, 1]}
    else:
        good = held_out.label > 0
        sides = {"desirable": moved[good, 0], "undesirable": moved[~good, 0]}
    return {name: intervals.mean(values, seed) for name, values in sides.items() if len(values)}
