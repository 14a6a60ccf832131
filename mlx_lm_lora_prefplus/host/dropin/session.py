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
    """The work of a caller who brings the model and the rows.

    read: split → its rows, with what became of them.
    """

    read: dict[str, Rows]


def session_of(resolved: Resolved, model: nn.Module, **datasets: Any) -> GivenSession:
    """The rows of the data sets that hold any, ready to be visited.

    Raises:
        UserError: there are several processes, or something is wrong with the rows.
    """
    if mx.distributed.init().size() > 1:
        raise UserError(
            "These functions run in one process: start the program without mlx.launch, or train with mlx_lm_lora.train."
        )
    model_settings: dict[str, Any] = {"train_type": train_type(model)}
    if not hasattr(model, "layers"):  # no model of mlx-lm, in which there is nothing to look for
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
    """A tokenizer of which nothing is known, so that the rows themselves are looked through for tokens too large."""

    def get_vocab(self) -> dict[str, int]:
        return {"": 2**62}


def compares(session: Session) -> bool:
    """Whether the loss needs a reference."""
    return session.resolved.trainer.needs_reference(session.resolved.options)


def check_reference(session: Session, ref_model: nn.Module | None, trained: str) -> None:
    """UserError where no reference model is given and none can be made of the model that is evaluated.

    trained: the argument that a reference model is given with.
    """
    if ref_model is None and compares(session) and not adapter_layers(session.model):
        raise UserError(
            f"{trained} is None, which stands for the model with its adapters off, but this model has no adapters, so "
            f"it would be compared with itself. Give the model that training began with as {trained}, or, to evaluate "
            "without a reference, write reference_free: true into the file that MLX_LM_LORA_PREFPLUS_OPTIONS names."
        )


def reference_of(session: Session, ref_model: nn.Module | None) -> ReferencePass:
    """The reference for the rows that the run visits: the given model as it is, else the model with its adapters off.

    Without adapters that is the model as it is now. It has no log-probs where the loss has no reference.
    """
    return ReferencePass(session, ref_model if compares(session) else None)


def describe_reference(session: Session, ref_model: nn.Module | None) -> str:
    """Which reference was taken, in a sentence."""
    if not compares(session):
        unused = "; the ref_model that was given is not used" if ref_model is not None else ""
        free = getattr(session.resolved.options, "reference_free", False)
        return f"Reference: none{' (reference_free)' if free else ''}{unused}"
    if ref_model is not None:
        return "Reference: the given ref_model as it is now"
    kind = "the model with its adapters off" if adapter_layers(session.model) else "the model as it is now, kept frozen"
    return f"Reference: {kind}, as no ref_model is given (reference_free: true trains without a reference)"


def announce(session: GivenSession, ref_model: nn.Module | None, callback: Any, more: Sequence[str] = ()) -> Messages:
    """Say what is in force, where printing goes and where the callback writes.

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
    """The folder of the adapters; None where the caller saves none."""
    return None if adapter_file is None else file_of(adapter_file).parent


def file_of(adapter_file: Any) -> Path:
    """The adapter file that an argument names: in a folder, the host's name for it."""
    path = Path(adapter_file)
    return path / "adapters.safetensors" if path.is_dir() else path
