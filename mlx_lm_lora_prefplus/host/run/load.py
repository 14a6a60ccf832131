"""Check a run before anything is loaded, then load the model and read the rows."""

from collections.abc import Sequence
from itertools import islice
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
from ...engine.memory.advice import explained
from ...engine.ranks.ranks import Ranks
from ...engine.train.early_stopping import BestMetric
from ...errors import UserError
from ...settings import RunSettings
from ...storage.cache_folder import size_limit
from .. import models, trained
from ..callbacks.loggers import check_loggers
from ..config.resolve import Resolved
from ..console import print_info
from ..output.previous import as_begun, check_not_its_own_source
from .resume import find_state
from .rows import read_rows
from .session import Session


def adapters_in(settings: RunSettings) -> Path:
    """Return the file to which the trained weights are written."""
    return Path(settings.adapter_path) / "adapters.safetensors"


def check_start(settings: RunSettings) -> None:
    """Check everything that can be checked before loading, without writing a file."""
    if not (settings.train or settings.test):
        raise UserError("Nothing to do. Give --train, --test or both (train: true in the config file).")
    if settings.test and settings.test_batches == 0:
        raise UserError("test_batches is 0, so there is nothing to test. Give a positive number, or -1 for all rows.")
    check_temporary_folder()
    size_limit()
    check_loggers(settings)
    check_not_its_own_source(settings)
    if file := trained.resume_file(settings):
        check_file(file, "resume_adapter_file")
    if not settings.train and settings.adapter_path and not Path(settings.adapter_path).is_dir():
        raise UserError(
            f"adapter_path: there is no folder {settings.adapter_path} to test. Train first, or correct the path."
        )


def check_validation(session: Session) -> None:
    """Raise a UserError if a setting needs validations but there will be none, or a metric that they do not have."""
    settings = session.resolved.settings
    for key in ("early_stopping_patience", "early_stopping_metric", "save_best", "sample_prompts"):
        if getattr(settings, key) not in (None, 0) and not session.evaluates("valid"):
            raise UserError(f"{key}: there are no validations. Give valid rows and set val_batches to 1 or more.")
    watched = [(key, getattr(settings, key)) for key in ("save_best", "early_stopping_metric")]
    _check_metrics(session, [BestMetric(metric, key) for key, metric in watched if metric not in (None, "loss")])


def _check_metrics(session: Session, watched: Sequence[BestMetric]) -> None:
    """Raise a UserError if the validation lacks one of these metrics. Their values do not count: there is no reference
    yet.

    One batch may lack metrics that others have (such as those of undesirable rows), so a metric is refused only after
    all batches.
    """
    trainer, options = session.resolved.trainer, session.resolved.options
    means = dict[str, float]()
    with explained(session.model, session.resolved.settings):
        for batches in (1, None):
            if any(best.metric not in means for best in watched):
                some = islice(session.batches("valid"), batches)
                means = trainer.evaluate(session.engine.policy, some, options, trainer.initial_state(options))
    for best in watched:
        best.check(means)


def open_run(resolved: Resolved) -> tuple[Session, dict[str, Split], RunState | None]:
    """Load the model and read the rows in one process. Only the caches are written.

    Returns:
        The session, its rows with the numbers of used and dropped rows, and the state from which the run continues.
    """
    settings = resolved.settings
    state = find_state(resolved, adapters_in(settings)) if settings.train else None
    return *load(resolved, state, Ranks()), state


def load(resolved: Resolved, state: RunState | None, ranks: Ranks) -> tuple[Session, dict[str, Split]]:
    """Load the model and read the rows. Only the caches are written.

    state: the state from which the run continues.

    Returns:
        The session, and its rows with the numbers of used and dropped rows.
    """
    settings = resolved.settings
    ranks.enter("loading the model")
    if state is not None or not settings.train:
        resolved = as_begun(resolved)
        settings = resolved.settings
    np.random.seed(settings.seed)
    mx.random.seed(settings.seed)  # before the adapters are created, so that the same command gives the same bytes

    print_info(f"Loading model: {Colors.CYAN}{settings.model}{Colors.RESET}")
    model, tokenizer = models.load_base(settings, resolved.data)
    if settings.train:
        models.add_adapters(model, settings)
        if (file := trained.resume_file(settings)) and state is None:
            # This file is checked before the rows are read, because reading rows takes time. It is loaded afterwards.
            read_adapter_weights(model, file, "resume_adapter_file")

    ranks.enter("reading the rows")
    print_info("Loading datasets")
    # One process after the other, so that processes on the same machine reuse the rows that the first has written.
    if not ranks.first:
        ranks.largest(0)
    splits = read_rows(resolved, tokenizer)
    if ranks.first:
        ranks.largest(0)
    rows = {name: split.rows for name, split in splits.items()}
    stream = splits["train"].stream if "train" in splits else None
    return Session(resolved, model, tokenizer, rows, ranks, stream), splits
