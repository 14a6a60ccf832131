"""A run of one of this package's modes, from resolved settings to saved adapters: load, read, train, test, fuse."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from mlx_lm_lora.visuals import print_section

from ...data import Split
from ...engine.files.adapter_files import check_writable
from ...engine.files.metrics_file import MetricsFile
from ...engine.files.run_state import RunState
from ...engine.log.output import RunLog, recorded
from ...engine.ranks.ranks import Ranks
from ...engine.reference.source import ReferenceSource
from ...engine.train.interrupts import stop_at_once
from ...errors import UserError
from ...storage.atomic import RESUME, explained
from ...storage.owner import Owner, owned
from .. import trained
from ..callbacks.loggers import open_loggers
from ..callbacks.samples import keep_samples
from ..config.resolve import Resolved
from ..console import print_info, print_warning
from ..output.aside import UNFUSED
from ..output.fuse import finish_with_fuse, is_fused
from ..output.previous import keep_previous
from ..output.record import write_record
from . import summary
from .findings import findings
from .given import loaded, started_with
from .load import adapters_in, check_start, check_validation, load
from .references import ReferencePass
from .resume import check_same_run, find_state, fingerprint, planned_packed
from .session import Session
from .train import test_policy, train_policy


def run(resolved: Resolved, training_callback: Any = None) -> None:
    """Train and test with the settings in `resolved`. All checks take place before the first file is written.

    Raises:
        UserError: Settings, model or data are invalid.
    """
    ranks = Ranks()
    with stop_at_once(), silence_other_ranks(ranks), recorded() as log, ranks.together(log.add):
        _run(resolved, training_callback if ranks.first else None, ranks, log)


def tell_other_ranks(error: UserError | SystemExit) -> None:
    """If this process cannot start, end the other processes of the run with its error."""
    if isinstance(error, SystemExit) and not error.code:
        return  # --help
    problem = UserError("Its command line is invalid. See the output of that process.")
    with suppress(UserError), Ranks().same():
        raise problem if isinstance(error, SystemExit) else error


def _run(resolved: Resolved, training_callback: Any, ranks: Ranks, log: RunLog) -> None:
    settings = resolved.settings
    with ExitStack() as stack:
        owner, state = None, None
        with ranks.same() as given:
            given.update(started_with(resolved))
            check_start(settings)
            if settings.train and ranks.first:
                file = adapters_in(settings)
                owner = stack.enter_context(owned(file.parent, print_warning))
                check_writable(file)
                state = find_state(resolved, file)
        _run_owned(resolved, training_callback, ranks, ranks.state_from_first(state), owner, log)


def _run_owned(
    resolved: Resolved, training_callback: Any, ranks: Ranks, state: RunState | None, owner: Owner | None, log: RunLog
) -> None:
    """Load, train, test and fuse.

    state: the state to continue from. owner: the lock on the adapter folder; None in processes other than the first,
        and in tests.
    """
    session, splits = load(resolved, state, ranks)
    resolved, settings = session.resolved, session.resolved.settings
    if state is not None:
        session.continue_plan(packed=planned_packed(state))
    planned, identity = _compared(session, state, ranks)
    lines, warnings = _announced(session, splits, planned)
    ranks.enter("computing the reference")
    reference = planned.source(done=state.iteration if state else 0)
    if settings.train:
        file = adapters_in(settings)

        def begin() -> None:
            if owner is not None:
                owner.check()
                previous = keep_previous(settings, file, resumed=state is not None)
                log.open(file.parent)
                if settings.fuse:
                    with explained(file.with_name(UNFUSED), RESUME):
                        file.with_name(UNFUSED).touch()
                said = lines, [*resolved.notes, *warnings]
                write_record(file.parent, resolved, session.iters, splits, *said, planned.digest, previous)
                keep_samples(file.parent, state.values["progress"].get("validated", 0) if state else 0)

        _train(session, reference, training_callback, state=state, identity=identity, begin=begin, owner=owner)
    else:
        if settings.adapter_path:
            trained.load_trained(session.model, settings.adapter_path)
        with open_loggers(settings, resolved.values, first=ranks.first) as loggers:
            test_policy(session, reference, loggers=loggers)
    ranks.leave()
    if settings.train and settings.fuse and ranks.first and not is_fused(settings):
        finish_with_fuse(resolved, session.model, session.tokenizer)
        with suppress(OSError):  # if the marker file remains, the next start fuses again
            adapters_in(settings).with_name(UNFUSED).unlink(missing_ok=True)


def _compared(session: Session, state: RunState | None, ranks: Ranks) -> tuple[ReferencePass, dict[str, Any]]:
    """Check that all processes loaded the same, and that it belongs to the saved state.

    Returns:
        The reference, and the values that determine the results (see `resume.fingerprint`).
    """
    settings = session.resolved.settings
    ranks.enter("comparing what was loaded")
    with ranks.same() as given:
        planned = ReferencePass(session)
        identity = fingerprint(session, planned)
        given.update(loaded(session, identity))
        if settings.train and state is not None and ranks.first:
            check_same_run(state, identity, settings)
        if settings.train:
            check_validation(session)
    planned.forget_what_others_lack()
    return planned, identity


def _announced(session: Session, splits: dict[str, Split], planned: ReferencePass) -> tuple[list[str], list[str]]:
    """Print the summary and the warnings, and return both."""
    lines = [*summary.lines(session, splits, planned), f"Engine: {session.engine.description}"]
    reports = {name: split.report for name, split in splits.items()}
    warnings = findings(session, reports) if session.ranks.first else []
    for line in lines:
        print_info(line)
    for warning in warnings:
        print_warning(warning)
    return lines, warnings


def _train(session: Session, reference: ReferenceSource, callback: Any, **arguments: Any) -> None:
    """Train, and test if the settings ask for it. arguments: see `train_policy`."""
    settings, ranks = session.resolved.settings, session.ranks
    file = adapters_in(settings)
    ranks.enter("training")
    print_section("Training")
    with open_loggers(settings, session.resolved.values, first=ranks.first) as loggers:
        any_left = train_policy(session, reference, file, callback, loggers=loggers, **arguments)
        if settings.test:
            metrics = MetricsFile(file.parent)
            keeps = ranks.first and (any_left or not metrics.has("test"))
            test_policy(session, reference, metrics if keeps else None, loggers)
    if not any_left:
        print_info(f"The run in {settings.adapter_path} is finished. To train longer, set a larger iters.")


@contextmanager
def silence_other_ranks(ranks: Ranks) -> Iterator[None]:
    """Let only the first process print. The others print only the error that ends them."""
    if ranks.first:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
