"""What a run checks before it loads anything, and how it loads the model and reads the rows."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm_lora.visuals import Colors

from ...backend import check_temporary_folder
from ...data import Split
from ...engine.files.adapter_files import (
    check_file,
    read_adapter_weights,
)
from ...engine.files.run_state import RunState
from ...engine.ranks.ranks import Ranks
from ...errors import UserError
from ...settings import RunSettings
from ...storage.cache_folder import size_limit
from .. import models
from ..callbacks.loggers import check_loggers
from ..config.resolve import Resolved
from ..console import print_info
from ..output.previous import as_begun, check_not_its_own_source
from .resume import find_state
from .session import Session, read_rows


def adapters_in(settings: RunSettings) -> Path:
    """The file that the trained weights are written to."""
    return Path(settings.adapter_path) / "adapters.safetensors"


def check_start(settings: RunSettings) -> None:
    """What can be known to be wrong before anything is loaded. Nothing is written."""
    if not (settings.train or settings.test):
        raise UserError("Nothing to do: give --train, --test or both (train: true in the config file).")
    if settings.test and settings.test_batches == 0:
        raise UserError("test_batches: 0 leaves nothing to test. Give a number, or -1 for all rows.")
    check_temporary_folder()
    size_limit()
    check_loggers(settings)
    check_not_its_own_source(settings)
    if file := models.resume_file(settings):
        check_file(file, "resume_adapter_file")
    if not settings.train and settings.adapter_path and not Path(settings.adapter_path).is_dir():
        raise UserError(
            f"adapter_path: there is no folder {settings.adapter_path} to test. Train first, or correct the path."
        )


def check_validation(session: Session) -> None:
    """UserError where something waits for validations that there will not be."""
    settings = session.resolved.settings
    for key in ("early_stopping_patience", "early_stopping_metric", "save_best", "sample_prompts"):
        if getattr(settings, key) not in (None, 0) and not session.evaluates("valid"):
            raise UserError(f"{key}: there is nothing to validate on. Give valid rows and val_batches other than 0.")


def open_run(resolved: Resolved) -> tuple[Session, dict[str, Split], RunState | None]:
    """Load the model and read the rows in one process. Nothing is written but the caches.

    Returns:
        The work, its rows with what became of them, and the state that the run goes on from.
    """
    settings = resolved.settings
    state = find_state(settings, adapters_in(settings)) if settings.train else None
    return *load(resolved, state, Ranks()), state


def load(resolved: Resolved, state: RunState | None, ranks: Ranks) -> tuple[Session, dict[str, Split]]:
    """Load the model and read the rows. Nothing is written but the caches.

    state: what the run goes on from.

    Returns:
        The work, and its rows with what became of them.
    """
    settings = resolved.settings
    ranks.enter("loading the model")
    if state is not None or not settings.train:
        resolved = as_begun(resolved)
        settings = resolved.settings
    np.random.seed(settings.seed)
    mx.random.seed(settings.seed)  # before the adapters are made: the same command gives the same bytes

    print_info(f"Loading model: {Colors.CYAN}{settings.model}{Colors.RESET}")
    model, tokenizer = models.load_base(settings)
    if settings.train:
        models.add_adapters(model, settings)
        if (file := models.resume_file(settings)) and state is None:
            # Checked before the rows and the reference take their time; loaded after them.
            read_adapter_weights(model, file, "resume_adapter_file")

    ranks.enter("reading the rows")
    print_info("Loading datasets")
    # One after the other: the rows that the first has written are ready for those on the same machine.
    if not ranks.first:
        ranks.largest(0)
    splits = read_rows(resolved, tokenizer)
    if ranks.first:
        ranks.largest(0)
    rows = {name: split.rows for name, split in splits.items()}
    stream = splits["train"].stream if "train" in splits else None
    return Session(resolved, model, tokenizer, rows, ranks, stream), splits
