"""The summary that a run prints before its first step: objective, reference, rows, trained parameters, plan.

MLX-LoRA-Studio parses the output line by line. No line may contain `loss`, `it/s` or `memory:`, or resemble a progress
bar.
"""

from dataclasses import fields
from itertools import islice

import mlx.nn as nn
from mlx.utils import tree_flatten

from ...data import Split
from ...data.batches.packing import in_one_row
from ...data.batches.plan import Plan
from ...data.tokens.report import counted
from ...engine.logprobs.computed import computed_tokens, shares_prompts
from ...engine.train.gradient import cut
from ...losses import OPTIONS, loss_names
from ...settings import DataSettings, RunSettings
from ..config.presets import PRESETS
from ..config.resolve import Resolved
from ..output import fuse
from .references import ReferencePass
from .session import Session

ALWAYS_SHOWN = ("cpo_alpha", "sft_weight")
"""Options to print even at their default, because users must see whether an NLL is added to the objective."""

EXAMPLES = {"paired": "pairs", "unpaired": "rows", "ranked": "lists"}

TOKENS = {
    "paired": ("chosen", "rejected"),
    "unpaired": ("desirable", "undesirable"),
    "ranked": ("best", "other"),
}
"""Kind of rows → the names of its two groups of completions in the token counts."""


def lines(session: Session, splits: dict[str, Split], planned: ReferencePass) -> list[str]:
    """Return the lines of the summary of a run."""
    resolved, model = session.resolved, session.model
    texts = [
        f"Mode: {resolved.trainer.mode}, by {resolved.provider}",
        f"Objective: {objective(resolved)}",
        f"Reference: {reference(session, planned)}",
        f"Prompt format: {prompt_format(resolved.data)}",
    ]
    if preset := resolved.settings.preset:
        keys = [
            key
            for key, source in resolved.sources.items()
            if source == f"preset {preset}" and key not in ("train_mode", "dpo_cpo_loss_type")
        ]
        values = ", ".join(f"{key} {written(resolved.values[key])}" for key in keys)
        texts.append(f"Preset: {preset} ({PRESETS[preset].source}): {values or 'every value of it is overridden'}")
    texts += [rows(name, split) for name, split in splits.items()]
    if resolved.settings.train:
        texts += [training(resolved.settings, model), schedule(session)]
        if resolved.settings.fuse:
            size = fuse.fused_bytes(model, fuse.dequantizes(model, resolved.settings))
            texts.append(f"Fused model: {fuse.gigabytes(size)}, written after the adapters (--no-fuse leaves it out)")
    return texts


def objective(resolved: Resolved) -> str:
    """Describe the objective: the losses with their options, and other options that differ from their default."""
    options, table = resolved.options, resolved.trainer.losses
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    names = [name for name in loss_names(values.pop("loss_type", resolved.trainer.mode)) if isinstance(name, str)]
    weights = values.pop("loss_weights", None) or [1] * len(names)
    text = " + ".join(f"{w:g}·{name}" for w, name in zip(weights, names, strict=True))
    if len(names) == 1 and weights[0] == 1:
        text = names[0]
    used = {key for name in names if name in table for key in table[name].options}
    of_losses = {key for row in table.values() for key in (*row.options, *row.instead)}
    plain = {field.name: field.default for field in fields(options)}
    always = ALWAYS_SHOWN if isinstance(options, tuple(OPTIONS.values())) else {*values} - {"router_aux_loss_coef"}
    printed = {
        key: value
        for key, value in values.items()
        if key in used or (key not in of_losses and (key in always or value != plain[key]))
    }
    if "simpo_gamma" in used:
        printed["γ/β"] = f"{values['simpo_gamma'] / values['beta']:.3g}"
    texts = ", ".join(f"{key} {written(value)}" for key, value in printed.items())
    return f"{text} ({texts})" if texts else text


def written(value: object) -> str:
    """Return a number without digits from float rounding: 1.65, not 1.6500000000000001."""
    return str(float(f"{value:.12g}")) if isinstance(value, float) else str(value)


def reference(session: Session, planned: ReferencePass) -> str:
    """Describe where the reference comes from, and for how many rows its log-probs are cached."""
    settings = session.resolved.settings
    if not session.resolved.needs_reference:
        return "none"
    cached, needed = planned.counts()
    from_cache = f", {cached} of {needed} rows from the cache"
    if settings.reference_model_path:
        text = "loaded for one pass over the rows and freed before training" if cached < needed else "not loaded"
        return f"{settings.reference_model_path}, {text}{from_cache}"
    if session.stream:
        return f"the model with its adapters off, no second model; training rows are computed when used{from_cache}"
    if settings.train_type == "full":
        return f"the model before the first step{from_cache}"
    text = f"the model with its adapters off, no second model{from_cache}"
    trunk = session.engine.trunk
    if trunk and cached < needed and planned.in_steps:
        count = len(session.model.layers or ())
        text += (
            "; other training rows are computed in their first step, where policy and reference share "
            f"layers 1 to {trunk.size} of {count}"
        )
    chosen = "round_reference" in session.resolved.values  # the command `rounds` keeps the first reference on purpose
    if settings.resume_adapter_file and not chosen:
        text += (
            f"; it is the base model, although training starts from {settings.resume_adapter_file} (to use that "
            f"adapter as the reference, set reference_model_path: {settings.resume_adapter_file})"
        )
    return text


def prompt_format(settings: DataSettings) -> str:
    """Describe how rows of plain text become prompts."""
    if settings.prompt_format == "chat":
        return "chat, text becomes messages for the chat template"
    return "raw, text goes to the model unchanged; messages go through the chat template, as in TRL"


def rows(name: str, split: Split) -> str:
    """Return the counts of a split: rows read, used, dropped (with reasons) and truncated, and tokens."""
    report = split.report
    dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
    count = counted(report.used, report.read, sum(report.dropped.values()))
    text = f"Rows, {name}: {count} from {report.source} ({report.shape})"
    text += f"; dropped: {dropped}" if dropped else ""
    text += f"; truncated: {report.truncated}" if report.truncated else ""
    text += f"; {report.desirable} desirable, {report.undesirable} undesirable" if report.kind == "unpaired" else ""
    for column, count in report.incomplete.items():
        text += f"; {column} is ignored: only {count} rows have it"
    text += f"; {report.pictures} pictures" if report.pictures else ""
    first, others = TOKENS[report.kind]
    tokens = f"{report.prompt_tokens:,} prompt, {report.chosen_tokens:,} {first}, {report.rejected_tokens:,} {others}"
    if report.masked_tokens:
        tokens += f"; {report.masked_tokens:,} of the completions' tokens do not count in the loss"
    return f"{text}; tokens: {tokens}"


def training(settings: RunSettings, model: nn.Module) -> str:
    """Describe what is trained, with the number of parameters."""
    trained = sum(value.size for value in dict(tree_flatten(model.trainable_parameters())).values())
    kind = {"lora": "LoRA adapters", "dora": "DoRA adapters", "full": "all unquantised weights"}
    return f"Trained: {kind[settings.train_type]}, {trained:,} parameters"


BATCHES_COUNTED = 500
"""Number of batches from which the share of padding is estimated. The batches are in random order."""


def schedule(session: Session) -> str:
    """Return the numbers of micro-batches, epochs and updates, and the share of padding."""
    settings, plan = session.resolved.settings, session.plan("train")
    examples = EXAMPLES[session.kind]
    size = f"{settings.batch_size} {examples}"
    if settings.token_budget:
        size = f"{len(plan.order) / len(plan):.1f} {examples} on average (token_budget {settings.token_budget})"
    epochs = f"{session.iters / len(plan):.2f} epochs"
    if session.stream:
        order = "in their order" if session.stream.in_order else f"shuffled {session.stream.size} at a time"
        epochs = f"rows: streaming, number unknown, {order}"
    in_parts = ""
    if session.fitting:
        in_parts = f"; a step computes up to {session.fitting:,} tokens at once, because more do not fit"
    return (
        f"Plan: {session.iters} micro-batches of {size} ({epochs}), "
        f"{-(-session.iters // settings.gradient_accumulation_steps)} updates, seed {settings.seed}; "
        f"padding adds {_padding(session, plan) - 1:.0%} to the tokens" + in_parts
    )


def _padding(session: Session, plan: Plan) -> float:
    """Estimate from the first batches of an epoch how many tokens, with padding, a step computes per token of a row."""
    lengths, policy = session.lengths("train"), session.engine.policy
    computed = real = 0
    for rows in islice(plan, BATCHES_COUNTED):
        whole = [(0, len(rows))]
        of_batch = in_one_row(lengths.take(rows)) if session.packs else lengths.take(rows)
        for start, stop in cut(of_batch, session.cut_at, session.multiple) if session.cut_at else whole:
            part = rows[start:stop]
            completions = lengths.completions(part)
            computed += computed_tokens(policy, lengths.prompt[part], completions, session.multiple)
            prompts = 1 if shares_prompts(policy) else lengths.count[part]
            real += int((prompts * lengths.prompt[part] + lengths.total[part]).sum())
    return computed / real
