"""Train the policy of a session, save its adapters, and evaluate it on the test rows."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx.utils import tree_map
from mlx_lm_lora.visuals import Colors, print_section

from ...engine.files.adapter_files import (
    load_adapter_weights,
    save_adapters,
)
from ...engine.files.metrics_file import Logger, MetricsFile
from ...engine.files.run_state import RunState, StateFiles
from ...engine.log.console import host_metrics
from ...engine.memory import advice as memory
from ...engine.reference.source import ReferenceSource
from ...engine.train.loop import train
from ...plugin import Batch
from ...report.results.intervals import of_rows, wilson
from ...storage.owner import Owner
from .. import trained
from ..callbacks.samples import Samples, first_prompts
from ..config.checks.optimizers import build_optimizer
from .assemble import trainer_state, training_inputs
from .session import Session


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
    """Run the training loop. The adapters are saved when it returns.

    state: the state to continue from. identity: see `resume.fingerprint`. begin, loggers: see `TrainingInputs`.
    owner: the lock on the adapter folder; None in processes other than the first.

    Returns:
        Whether anything was left to train: False if the resumed state is already at the last iteration.
    """
    settings, model, ranks = session.resolved.settings, session.model, session.ranks
    folder = adapter_file.parent
    if (file := trained.resume_file(settings)) and state is None:
        load_adapter_weights(model, file, "resume_adapter_file")
    if ranks.first and settings.sample_prompts:
        prompts = first_prompts(session.rows["valid"], settings.sample_prompts)
        tokens, going_on = settings.sample_tokens, state is not None
        callback = Samples(folder, model, session.tokenizer, prompts, tokens, going_on, callback, loggers)
    model.update(tree_map(ranks.from_first, model.trainable_parameters()))

    def save(iteration: int | None) -> tuple[Path, Path | None]:
        if owner is None:
            return adapter_file, None
        owner.check()
        return adapter_file, save_adapters(model, adapter_file, trained.adapter_config(settings), iteration)

    def save_best() -> Path:
        if owner is not None:
            owner.check()
            save_adapters(model, folder / "best" / adapter_file.name, trained.adapter_config(settings), None)
        return folder / "best"

    resumed, go_on = state.iteration if state else None, "the same command" if settings.resume else "--resume"
    return train(
        training_inputs(
            session,
            reference,
            optimizer=build_optimizer(settings),
            save=save,
            save_best=save_best,
            begin=begin,
            callback=callback,
            states=StateFiles(folder, settings.keep_last, resumed, go_on) if ranks.first else None,
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
    """Evaluate on the test rows, and print the results in the host's format.

    The line `Perplexity` is left out, because the exponential of a preference loss is no perplexity.

    metrics: the file for the results, or None. loggers: receive the results too.
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
