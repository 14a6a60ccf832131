"""A run of one of our modes, from resolved settings to saved adapters: load, read, tell, train, test, fuse."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from mlx_lm_lora.visuals import Colors, print_info, print_section, print_warning

from ...backend import check_temporary_folder
from ...data import Split
from ...engine.files.adapter_files import (
    check_file,
    check_writable,
    load_adapter_weights,
    read_adapter_weights,
    save_adapters,
)
from ...engine.files.metrics_file import Logger, MetricsFile
from ...engine.files.run_state import RunState, StateFiles
from ...engine.log.console import host_metrics
from ...engine.log.output import RunLog, recorded
from ...engine.model import memory
from ...engine.ranks.ranks import Ranks
from ...engine.reference.source import ReferenceSource
from ...engine.train.interrupts import stop_at_once
from ...engine.train.loop import train
from ...errors import UserError
from ...plugin import Batch
from ...report.intervals import of_rows, wilson
from ...settings import RunSettings
from ...storage.atomic import RESUME, explained
from ...storage.cache_folder import size_limit
from ...storage.failures import advice, cause_of, words
from ...storage.owner import Owner, owned
from .. import models
from ..callbacks.loggers import check_loggers, open_loggers
from ..callbacks.samples import Samples, first_prompts, keep_samples
from ..config.optimizers import build_optimizer
from ..config.resolve import Resolved
from ..output import fuse
from ..output.aside import UNFUSED
from ..output.previous import as_begun, check_not_its_own_source, keep_previous
from ..output.record import write_record
from . import summary
from .assemble import trainer_state, training_inputs
from .findings import findings
from .given import loaded, started_with
from .references import ReferencePass
from .resume import check_same_run, find_state, fingerprint
from .session import Session, read_rows


def run(resolved: Resolved, training_callback: Any = None) -> None:
    """Train and test as `resolved` says. Nothing is written before everything that can be checked has been.

    Raises:
        UserError: something given cannot work.
    """
    ranks = Ranks()
    with stop_at_once(), silence_other_ranks(ranks), recorded() as log, ranks.together(log.add):
        _run(resolved, training_callback if ranks.first else None, ranks, log)


def tell_other_ranks(error: UserError | SystemExit) -> None:
    """Let the other processes of a run end with the error that keeps this one from its start."""
    if isinstance(error, SystemExit) and not error.code:
        return  # --help
    problem = UserError("Its command line cannot be used; its own output says why.")
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
                state = find_state(settings, file)
        _run_owned(resolved, training_callback, ranks, ranks.state_from_first(state), owner, log)


def _run_owned(
    resolved: Resolved, training_callback: Any, ranks: Ranks, state: RunState | None, owner: Owner | None, log: RunLog
) -> None:
    """The run itself. state: what it goes on from. owner: of the adapter folder; None in other ranks and in tests."""
    session, splits = load(resolved, state, ranks)
    resolved, settings, model = session.resolved, session.resolved.settings, session.model
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
    lines = [*summary.lines(session, splits, planned), f"Engine: {session.engine.description}"]
    warnings = findings(session, {name: split.report for name, split in splits.items()}) if ranks.first else []
    for line in lines:
        print_info(line)
    for warning in warnings:
        print_warning(warning)

    ranks.enter("computing the reference")
    reference = planned.source(done=state.iteration if state else 0)
    if settings.train:
        ranks.enter("training")
        print_section("Training")
        file = adapters_in(settings)
        unfused = file.with_name(UNFUSED)

        def begin() -> None:
            if owner is not None:
                owner.check()
                previous = keep_previous(settings, file, resumed=state is not None)
                log.open(file.parent)
                if settings.fuse:
                    with explained(unfused, RESUME):
                        unfused.touch()
                said = lines, [*resolved.notes, *warnings]
                write_record(file.parent, resolved, session.iters, splits, *said, planned.digest, previous)
                keep_samples(file.parent, state.values["progress"].get("validated", 0) if state else 0)

        with open_loggers(settings, resolved.values, first=ranks.first) as loggers:
            arguments = {"state": state, "identity": identity, "begin": begin, "loggers": loggers, "owner": owner}
            trained = train_policy(session, reference, file, training_callback, **arguments)
            if settings.test:
                metrics = MetricsFile(file.parent)
                keeps = ranks.first and (trained or not metrics.has("test"))
                test_policy(session, reference, metrics if keeps else None, loggers)
        if not trained:
            print_info(f"Nothing is left to train: {settings.adapter_path} holds the finished run. More iters go on.")
    else:
        if settings.adapter_path:
            models.load_trained(model, settings.adapter_path)
        with open_loggers(settings, resolved.values, first=ranks.first) as loggers:
            test_policy(session, reference, loggers=loggers)
    ranks.leave()
    if settings.train and settings.fuse and ranks.first and unfused.is_file():
        finish_with_fuse(resolved, model, session.tokenizer)
        with suppress(OSError):  # if it stays, the next start fuses once more
            unfused.unlink(missing_ok=True)


@contextmanager
def silence_other_ranks(ranks: Ranks) -> Iterator[None]:
    """Only the first process prints; of the others nothing is heard but the error that ends them."""
    if ranks.first:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


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
    if settings.efficient_long_context and settings.grad_checkpoint:
        print_warning("grad_checkpoint is left out: efficient_long_context computes every piece again by itself.")
        settings = settings.model_copy(update={"grad_checkpoint": False})
        resolved = resolved._replace(settings=settings)
    np.random.seed(settings.seed)
    mx.random.seed(settings.seed)  # before the adapters are made: the same command gives the same bytes

    print_info(f"Loading model: {Colors.CYAN}{settings.model}{Colors.RESET}")
    model, tokenizer = models.load_base(settings)
    if settings.train:
        models.add_adapters(model, settings)
        if settings.resume_adapter_file and state is None:
            # Checked before the rows and the reference take their time; loaded after them.
            read_adapter_weights(model, Path(settings.resume_adapter_file), "resume_adapter_file")

    ranks.enter("reading the rows")
    print_info("Loading datasets")
    # One after the other: the rows that the first has written are ready for those on the same machine.
    if not ranks.first:
        ranks.largest(0)
    splits = read_rows(resolved, tokenizer)
    if ranks.first:
        ranks.largest(0)
    rows = {name: split.rows for name, split in splits.items()}
    return Session(resolved, model, tokenizer, rows, ranks), splits


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
    if settings.resume_adapter_file:
        check_file(Path(settings.resume_adapter_file), "resume_adapter_file")
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


def train_policy(
    session: Session,
    reference: ReferenceSource,
    adapter_file: Path,
    callback: Any,
    *,
    state: RunState | None = None,
    identity: dict[str, Any],
    begin: Callable[[], object] | None = None,
    loggers: Sequence[Logger] = (),
    owner: Owner | None = None,
) -> bool:
    """Run the loop; the adapters are saved when it returns.

    state: what to go on from. identity: see `resume.fingerprint`. begin, loggers: see `TrainingInputs`.
    owner: of the adapter folder; None in other processes than the first.

    Returns:
        Whether there was anything left to train.
    """
    settings, model, ranks = session.resolved.settings, session.model, session.ranks
    folder = adapter_file.parent
    if settings.resume_adapter_file and state is None:
        load_adapter_weights(model, Path(settings.resume_adapter_file), "resume_adapter_file")
    if ranks.first and settings.sample_prompts:
        prompts = first_prompts(session.rows["valid"], settings.sample_prompts)
        tokens, going_on = settings.sample_tokens, state is not None
        callback = Samples(folder, model, session.tokenizer, prompts, tokens, going_on, callback, loggers)
    models.make_ready(model, settings)

    model.update(tree_map(ranks.from_first, model.trainable_parameters()))

    def save(iteration: int | None) -> tuple[Path, Path | None]:
        if owner is None:
            return adapter_file, None
        owner.check()
        return adapter_file, save_adapters(model, adapter_file, models.adapter_config(settings), iteration)

    def save_best() -> Path:
        if owner is not None:
            owner.check()
            save_adapters(model, folder / "best" / adapter_file.name, models.adapter_config(settings), None)
        return folder / "best"

    return train(
        training_inputs(
            session,
            reference,
            optimizer=build_optimizer(settings),
            save=save,
            save_best=save_best,
            begin=begin,
            callback=callback,
            states=StateFiles(folder, settings.keep_last, state.iteration if state else None) if ranks.first else None,
            metrics=MetricsFile(folder) if ranks.first else None,
            loggers=loggers,
            ranks=ranks,
            resumed=state,
            fingerprint=identity,
        )
    )


def test_policy(
    session: Session, reference: ReferenceSource, metrics: MetricsFile | None = None, loggers: Sequence[Logger] = ()
) -> None:
    """Evaluate on the test rows and print the host's block, without its `Perplexity` (it was exp of this loss).

    metrics: where the figures are kept, or None. loggers: who gets them too.
    """
    session.ranks.enter("testing")
    print_section("Testing")
    resolved = session.resolved
    rows, current = 0, None

    def counted() -> Iterator[Batch]:
        nonlocal rows, current
        for batch in reference.fill(session.batches("test"), "test"):
            rows, current = rows + batch.units()["examples"], batch
            yield batch

    with memory.explained(session.model, resolved.settings, lambda: current):
        means = resolved.trainer.evaluate(session.policy, counted(), resolved.options, trainer_state(resolved))
    print(f"{Colors.BOLD}Test Results:{Colors.RESET}\n  {Colors.YELLOW}Loss:{Colors.RESET} {means['loss']:.3f}")
    if {"rewards/chosen", "rewards/rejected"} <= set(means):
        rewards = f"{means['rewards/chosen']:.3f}, {means['rewards/rejected']:.3f}"
        print(f"  {Colors.YELLOW}Rewards:{Colors.RESET} {rewards}")  # read by MLX-LoRA-Studio
    print(f"\n{Colors.CYAN}{resolved.trainer.mode.upper()} Test Metrics:{Colors.RESET}")
    for name, value in host_metrics(means).items():
        print(f"  {Colors.WHITE}{name}:{Colors.RESET} {value:.3f}")
    if "rewards/accuracies" in means:
        print(f"  {Colors.WHITE}accuracy:{Colors.RESET} {of_rows(wilson(means['rewards/accuracies'], rows))}")
    iteration = MetricsFile(Path(resolved.settings.adapter_path or ".")).last_iteration()
    if metrics:
        metrics.write({"iteration": iteration, "split": "test", **means, "rows": rows})
    for logger in loggers:
        logger.metrics("test", iteration, {**means, "rows": rows})


def finish_with_fuse(resolved: Resolved, model: nn.Module, tokenizer: Any) -> None:
    """Fuse, unless the result cannot fit: then an error if the user asked for it, else a warning."""
    mx.clear_cache()
    reason = fuse.cannot_fuse(model, resolved.settings)
    if reason is None:
        try:
            fuse.fuse(model, tokenizer, resolved.settings)
        except (OSError, RuntimeError, ValueError) as error:
            cause = cause_of(error, Path(resolved.settings.adapter_path))
            raise UserError(
                f"The adapters are trained and saved in {resolved.settings.adapter_path}, but the fused model could "
                f"not be written: {words(cause)}. {advice(cause)}. Then run mlx_lm.fuse, or use the adapters as they "
                "are (--adapter-path)."
            ) from error
    elif resolved.sources.get("fuse") in (None, "host default"):
        print_warning(f"Not fused: {reason}.")
    else:
        raise UserError(f"The adapters are trained and saved in {resolved.settings.adapter_path}, but {reason}.")
