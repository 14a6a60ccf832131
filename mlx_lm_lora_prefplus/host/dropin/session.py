"""The rows of a caller's data sets, and the report to the caller before training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...engine.log.notices import show
from ...engine.model.adapters import adapter_layers
from ...errors import UserError
from ..config.resolve import Resolved
from ..console import print_info, print_warning
from ..run import summary
from ..run.findings import findings
from ..run.references import ReferencePass
from ..run.session import Session
from .adapter_config import train_type
from .host_items import Rows, token_rows

Messages = tuple[list[str], list[str]]
"""The report: the lines of the summary, and the warnings."""


class GivenSession(Session):
    """The session of a caller who passes the model and the rows.

    read: split → its rows, with the numbers of used and dropped rows.
    """

    read: dict[str, Rows]


def session_of(resolved: Resolved, model: nn.Module, **datasets: Any) -> GivenSession:
    """Read the rows of the data sets that are not empty.

    Raises:
        UserError: There are several processes, or rows are invalid.
    """
    if mx.distributed.init().size() > 1:
        raise UserError(
            "These functions run in one process only. Start the program without mlx.launch, or use mlx_lm_lora.train."
        )
    model_settings: dict[str, Any] = {"train_type": train_type(model)}
    if not hasattr(model, "layers"):  # not a model of mlx-lm, so its embeddings are unknown
        model_settings |= {"engine": "plain", "memory": "fast"}
    resolved = resolved._replace(settings=resolved.settings.model_copy(update=model_settings))
    read = {
        split: token_rows(dataset, resolved.data, f"{split} data set")
        for split, dataset in datasets.items()
        if dataset is not None and (split != "valid" or len(dataset))
    }
    session = GivenSession(resolved, model, _UnknownTokenizer(), {split: one.rows for split, one in read.items()})
    session.read = read
    return session


class _UnknownTokenizer:
    """A tokenizer about which nothing is known, so that the rows are searched for tokens that are too large."""

    def get_vocab(self) -> dict[str, int]:
        return {"": 2**62}


def check_reference(session: Session, ref_model: nn.Module | None, trained: str) -> None:
    """Raise a UserError if no reference model is given and the model has no adapters that could be turned off.

    trained: the name of the argument for a reference model.
    """
    if ref_model is None and session.resolved.needs_reference and not adapter_layers(session.model):
        raise UserError(
            f"{trained} is None, which means the model without its adapters. But this model has no adapters, so it "
            f"would be compared with itself. Pass the model before training as {trained}. Or, to evaluate without a "
            "reference, write reference_free: true into the file that MLX_LM_LORA_PREFPLUS_OPTIONS names."
        )


def reference_of(session: Session, ref_model: nn.Module | None) -> ReferencePass:
    """Return the reference: the given model in its current state, or else the model without its adapters.

    A model without adapters is its own reference, in its current state. If the loss needs no reference, there are no
    reference log-probs.
    """
    return ReferencePass(session, ref_model if session.resolved.needs_reference else None)


def describe_reference(session: Session, ref_model: nn.Module | None) -> str:
    """Return a sentence about the reference."""
    if not session.resolved.needs_reference:
        unused = "; the ref_model that was given is not used" if ref_model is not None else ""
        free = getattr(session.resolved.options, "reference_free", False)
        return f"Reference: none{' (reference_free)' if free else ''}{unused}"
    if ref_model is not None:
        return "Reference: the given ref_model in its current state"
    kind = "the model with its adapters off" if adapter_layers(session.model) else "the model before the first step"
    return f"Reference: {kind}, because no ref_model is given (reference_free: true trains without a reference)"


def announce(session: GivenSession, ref_model: nn.Module | None, callback: Any, more: Sequence[str] = ()) -> Messages:
    """Report the settings of the run, on stdout and through the callback.

    more: further warnings.
    """
    resolved = session.resolved
    lines = [
        f"train_{resolved.trainer.mode} is run by {resolved.provider}. Engine: {session.engine.description}",
        f"Objective: {summary.objective(resolved)}",
        *([describe_reference(session, ref_model)] if resolved.trainer.mode == "dpo" else []),
        *(f"Rows, {split}: {rows.description}" for split, rows in session.read.items()),
        summary.training(resolved.settings, session.model),
        summary.schedule(session),
    ]
    for line in lines:
        print_info(line.replace("loss", "objective"))
        show(callback, line)
    warnings = [
        *resolved.notes,
        *more,
        *findings(session, {}, {split: rows.cut for split, rows in session.read.items()}),
    ]
    for line in warnings:
        print_warning(line.replace("loss", "objective"))
        show(callback, f"Warning: {line}")
    return lines, warnings


def folder_of(adapter_file: Any) -> Path | None:
    """Return the folder of the adapters; None if the caller saves none."""
    return None if adapter_file is None else file_of(adapter_file).parent


def file_of(adapter_file: Any) -> Path:
    """Return the adapter file that an argument names. For a folder it is the file with the host's name in it."""
    path = Path(adapter_file)
    return path / "adapters.safetensors" if path.is_dir() else path
