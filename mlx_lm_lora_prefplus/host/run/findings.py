"""Warnings before a run starts. `check`, a run, the drop-in functions, `run.json` and the report show the same list."""

from collections.abc import Iterator, Mapping
from typing import Any

import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ...data import SplitReport, statistics
from ...data.tokens.rows import TokenRows
from ...engine.model.qat import effective_linears
from ...losses import LossOptions, advice
from .. import models
from ..output import fuse
from ..vision import has_vision
from .session import Session

MEDIA = ("video", "videos", "audio", "audios")
"""Columns with content that a language model cannot see. Rows with pictures are rejected earlier."""


def findings(session: Session, reports: Mapping[str, SplitReport], cut: Mapping[str, int] | None = None) -> list[str]:
    """Return warnings about settings and data that have no effect or an unexpected effect. Each is one sentence.

    reports: split → its data report, if there is one. cut: split → number of truncated rows, if there is no report.
    """
    cut = {**{name: report.truncated for name, report in reports.items()}, **(cut or {})}
    texts = [*_of_settings(session, reports), *_of_model(session)]
    if session.resolved.settings.train and not session.evaluates("valid"):
        has_rows = "valid" in session.rows
        texts.append(
            f"There is no validation ({'val_batches: 0' if has_rows else 'no valid rows'}), so overfitting will go "
            f"unnoticed. {'Set val_batches to 1 or more.' if has_rows else 'Move a tenth of the rows to valid.jsonl.'}"
        )
    texts += [unmasked(name, report) for name, report in reports.items() if report.unmasked]
    sees = "text and pictures" if models.reads_pictures(session.tokenizer) else "only text"
    texts += [text for name, report in reports.items() for text in _unused_columns(name, report, sees)]
    return texts + statistics.data_warnings(session.rows, cut)


def unmasked(name: str, report: SplitReport) -> str:
    """Warn of rows whose completions count with all tokens although only some tokens should count."""
    return (
        f"{name}: in {report.unmasked} of {report.used} rows it is unclear which tokens the assistant wrote, "
        "because the chat template rewrites earlier turns. All tokens of their completions count in the loss. Use "
        "a chat template with {% generation %} blocks, or set assistant_only_loss: false and mask_thinking: false to "
        "count all tokens."
    )


def _of_settings(session: Session, reports: Mapping[str, SplitReport]) -> Iterator[str]:
    resolved, model = session.resolved, session.model
    settings = resolved.settings
    if isinstance(resolved.options, LossOptions) and settings.train:
        labels = None
        if resolved.trainer.rows == "unpaired" and "train" in reports:
            labels = reports["train"].desirable, reports["train"].undesirable
        yield from advice(resolved.options, float((np.diff(session.plan("train").starts) == 1).mean()), labels)
        if any("chosen_score" in row.columns for row in resolved.options.chosen_losses.values()):
            yield from unordered_scores(session.rows["train"])
    if settings.qat_enable and not effective_linears(model):
        yield (
            "qat_enable has no effect, because the model has no plain linear layer (the base is already quantised, or "
            "DoRA reads the weights directly). Train an unquantised model with train_type lora or full."
        )
    if settings.train_type != "full" and settings.num_layers > (count := len(model.layers or ())):
        yield f"num_layers {settings.num_layers}: the model has only {count} layers. All of them get adapters."
    if settings.token_budget and resolved.set_by_user("batch_size"):
        yield "batch_size has no effect if token_budget is set. Remove one of them."
    if settings.train and settings.iters and settings.epochs:
        yield f"epochs: {settings.epochs} has no effect if iters is set ({settings.iters}). Remove one of them."
    if settings.train and settings.fuse and (reason := fuse.cannot_fuse(model, settings)):
        yield f"With these settings {reason}."


def _of_model(session: Session) -> Iterator[str]:
    """Warn of settings that do not suit the model."""
    resolved, settings = session.resolved, session.resolved.settings
    limit, context = resolved.data.max_seq_length, context_of(session.model)
    if context and limit > context:
        longer = {name: _longer(session, name, context) for name in session.rows}
        counts = ", ".join(
            f"{count} of {len(session.rows[name])} {name} rows" for name, count in longer.items() if count
        )
        if counts or resolved.set_by_user("max_seq_length"):
            effect = f"{counts} are longer than that" if counts else "no row is longer than that"
            yield (
                f"max_seq_length {limit} exceeds the model's context of {context} tokens, and {effect}. Set "
                f"max_seq_length: {context}."
            )
    if getattr(session.tokenizer, "eos_token_id", 0) is None:
        yield (
            "The tokenizer has no EOS token, so completions have none. The model does not learn where to stop, "
            "unless the chat template ends each turn with another token."
        )
    if settings.train and settings.fuse and not models.reads_pictures(session.tokenizer) and has_vision(settings.model):
        yield (
            "The model also has a vision tower, which mlx_lm does not load. Only its language model is trained, and "
            "the fused model can no longer read pictures. Set fuse: false to write only the adapters."
        )
    if settings.train and settings.train_type == "full" and _quantized(session.model):
        trained = dict(tree_flatten(session.model.trainable_parameters()))
        total = sum(value.size for value in trained.values())
        yield (
            f"train_type: full on a quantised model trains only unquantised weights: {len(trained)} tensors with "
            f"{total:,} parameters, mostly norms. Use train_type: lora, or a model that is not quantised."
        )


def context_of(model: nn.Module) -> int | None:
    """The context length of the model in tokens, with RoPE scaling; None if its config does not have one."""
    args = getattr(model, "args", None)
    context = getattr(args, "max_position_embeddings", None)
    if not isinstance(context, int):
        return None
    scaling: Any = getattr(args, "rope_scaling", None) or {}
    factor, original = scaling.get("factor", 1), scaling.get("original_max_position_embeddings", context)
    return max(context, int(factor * original)) if isinstance(factor, (int, float)) else context


def unordered_scores(rows: TokenRows) -> list[str]:
    """Warn of pairs whose chosen completion scores no higher than the rejected one: `odpo` cannot use them."""
    chosen, rejected = (rows.numbers(name) for name in ("chosen_score", "rejected_score"))
    wrong = int((chosen <= rejected).sum())
    if not wrong:
        return []
    return [
        f"{wrong} of {len(rows)} training pairs have a chosen_score that is not above rejected_score: odpo "
        "learns almost nothing from them. Remove them, or swap the completions."
    ]


def _unused_columns(name: str, report: SplitReport, sees: str) -> Iterator[str]:
    """sees: what the model reads, in words."""
    media = [column for column in report.unused if column.lower() in MEDIA]
    others = [column for column in report.unused if column not in media]
    if media:
        yield (
            f"{name}: column {', '.join(media)} is not used, because the model sees {sees}. Remove rows that "
            "cannot be answered without it."
        )
    if others:
        yield f"{name}: these columns are not used: {', '.join(others)}."


def _longer(session: Session, split: str, context: int) -> int:
    lengths = session.lengths(split)
    return int((lengths.prompt + lengths.completion > context).sum())


def _quantized(model: nn.Module) -> bool:
    return any(isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)) for _, module in model.named_modules())
