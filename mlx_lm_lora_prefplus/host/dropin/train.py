"""`train_dpo`, `train_cpo` and `train_orpo` with the host's signatures, computed by this package's engine."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.nn as nn
import mlx.optimizers as optim
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm_lora.trainer.dpo_trainer import DPOTrainingArgs
from mlx_lm_lora.trainer.orpo_trainer import ORPOTrainingArgs, orpo_loss

from ...engine.files.adapter_files import check_writable, save_adapters
from ...engine.files.metrics_file import MetricsFile
from ...engine.files.names import NUMBERED_ADAPTERS
from ...engine.files.run_state import RunState, StateFiles
from ...engine.log.notices import show
from ...engine.log.output import RunLog, recorded
from ...engine.rate import sets_its_own
from ...engine.train.loop import train
from ...storage.owner import Owner, owned
from ..config.resolve import Resolved
from ..console import print_warning
from ..models import make_ready
from ..output.record import write_record
from ..run.assemble import training_inputs
from ..run.load import check_validation
from ..run.session import Session
from .adapter_config import adapter_config
from .losses import GivenLoss, cpo_loss, dpo_loss
from .previous import keep_previous
from .session import Messages, announce, file_of, folder_of, reference_of, session_of
from .settings import resolved_settings, settings_of


def train_dpo(
    model: nn.Module,
    ref_model: nn.Module | None,
    optimizer: optim.Optimizer,
    train_dataset: Any,
    val_dataset: Any = None,
    args: DPOTrainingArgs = DPOTrainingArgs(),  # noqa: B008  (the host's signature)
    loss_fn: Callable[..., Any] = dpo_loss,
    training_callback: TrainingCallback | None = None,
    loss_type: str = "sigmoid",
) -> None:
    """Train DPO like the host's function of this name. The arguments below differ from the host's.

    Arguments:
        ref_model: the reference. Its log-probs are computed once for each row. None: the model without its adapters
            (for a model without adapters: the model before the first step). `args.reference_free = True`, or this key
            in the options file (`prefplus.yaml`), trains without a reference.
        train_dataset, val_dataset: see `host_items.token_rows`. Every row is used once per epoch.
        args: all fields are used. `loss_type` may be any loss of mode dpo. If `adapter_file` is None, nothing is saved,
            and the adapters remain in the model. If it is a folder, they are saved in it.
        loss_fn: a loss function of the caller gets the arguments that the host would pass.
        loss_type: takes precedence over `args.loss_type` unless it is "sigmoid".

    Raises:
        UserError: An argument is invalid, or the loss is not finite. The error is also a ValueError.
    """
    loss = loss_type if loss_type != "sigmoid" else args.loss_type
    loss_of_caller = given_loss(loss_fn, dpo_loss, beta=args.beta, delta=args.delta, loss_type=loss)
    resolved = _resolved("dpo", args, None if loss_of_caller else loss, loss_of_caller)
    _train(resolved, model, ref_model, optimizer, train_dataset, val_dataset, args, training_callback)


def train_cpo(
    model: nn.Module,
    optimizer: optim.Optimizer,
    train_dataset: Any,
    val_dataset: Any = None,
    args: DPOTrainingArgs = DPOTrainingArgs(),  # noqa: B008
    loss_fn: Callable[..., Any] = cpo_loss,
    training_callback: TrainingCallback | None = None,
) -> None:
    """Train CPO like the host's function of this name; see `train_dpo`."""
    loss_of_caller = given_loss(loss_fn, cpo_loss, beta=args.beta, delta=args.delta, loss_type=args.loss_type)
    resolved = _resolved("cpo", args, None if loss_of_caller else args.loss_type, loss_of_caller)
    _train(resolved, model, None, optimizer, train_dataset, val_dataset, args, training_callback)


def train_orpo(
    model: nn.Module,
    optimizer: optim.Optimizer,
    train_dataset: Any,
    val_dataset: Any = None,
    loss: Callable[..., Any] = orpo_loss,
    args: ORPOTrainingArgs = ORPOTrainingArgs(),  # noqa: B008
    training_callback: TrainingCallback | None = None,
) -> None:
    """Train ORPO like the host's function of this name; see `train_dpo`. The items' `preference_score` is used."""
    resolved = _resolved("orpo", args, None, given_loss(loss, orpo_loss, beta=args.beta))
    _train(resolved, model, None, optimizer, train_dataset, val_dataset, args, training_callback)


def given_loss(function: Callable[..., Any], stock: Callable[..., Any], **arguments: Any) -> dict[str, Any] | None:
    """Return the arguments of `GivenLoss` if the caller passes its own loss function; otherwise None."""
    if inspect.unwrap(function) is inspect.unwrap(stock):
        return None
    return {"function": function, "arguments": arguments}


def _resolved(mode: str, args: Any, loss_type: str | None, loss_of_caller: dict[str, Any] | None) -> Resolved:
    resolved = resolved_settings(settings_of(args, mode, loss_type), folder_of(args.adapter_file))
    return with_loss(resolved, loss_of_caller)


def with_loss(resolved: Resolved, loss_of_caller: dict[str, Any] | None) -> Resolved:
    """Return the settings with the caller's loss in place of the mode's. `loss_of_caller`: the arguments of
    `GivenLoss`, or None.
    """
    if loss_of_caller is None:
        return resolved
    trainer: Any = resolved.trainer
    own = GivenLoss(
        trainer.mode,
        trainer.options,
        trainer.losses,
        reference=trainer.reference,
        odds=trainer.mode == "orpo",
        **loss_of_caller,
    )
    return resolved._replace(trainer=own)


def _train(
    resolved: Resolved,
    model: nn.Module,
    ref_model: nn.Module | None,
    optimizer: optim.Optimizer,
    train_dataset: Any,
    val_dataset: Any,
    args: Any,
    callback: Any,
) -> None:
    file = None if args.adapter_file is None else file_of(args.adapter_file)

    def tell(line: str) -> None:
        print_warning(line)
        show(callback, line)

    with recorded() as log, owned(file.parent if file else None, tell) as owner:
        if file:
            check_writable(file)
        make_ready(model, resolved.settings)
        session = session_of(resolved, model, train=train_dataset, valid=val_dataset)
        check_validation(session)
        messages = announce(session, ref_model, callback, _unused(args, ref_model, optimizer))
        planned, saving = reference_of(session, ref_model), {"save": None}
        if file and owner:
            saving = _saving(session, file, callback, messages, owner, log, planned.digest)
        train(training_inputs(session, planned.source(), optimizer=optimizer, callback=callback, **saving))


def _unused(args: Any, ref_model: nn.Module | None, optimizer: optim.Optimizer) -> list[str]:
    """Return one sentence for each setting that has no effect although the caller may expect one."""
    messages = []
    if ref_model is None and (path := getattr(args, "reference_model_path", None)):
        messages.append(f"reference_model_path {path} has no effect here: load that model and pass it as ref_model.")
    if sets_its_own(optimizer) and "learning_rate" in optimizer.state:
        messages.append(
            f"{type(optimizer).__name__} sets its own learning rate, so its learning_rate has no effect. To use it, "
            "create the optimizer with relative_step=False."
        )
    if args.adapter_file is None:
        messages.append("adapter_file is None: nothing is saved, and the adapters remain only in the model.")
    return messages


def _saving(
    session: Session,
    adapter_file: Path,
    callback: Any,
    messages: Messages,
    owner: Owner,
    log: RunLog,
    reference: str | None,
) -> dict[str, Any]:
    """Return what the training loop needs to save a run.

    owner: the lock on the adapter folder. reference: a digest of the reference's weights.
    """
    model, config = session.model, adapter_config(session.model, adapter_file.parent)

    def save(iteration: int | None) -> tuple[Path, Path | None]:
        owner.check()
        return adapter_file, save_adapters(model, adapter_file, config, iteration)

    def save_best() -> Path:
        owner.check()
        save_adapters(model, adapter_file.parent / "best" / adapter_file.name, config, None)
        return adapter_file.parent / "best"

    states, metrics = _Stopped(adapter_file.parent, session.iters, save), MetricsFile(adapter_file.parent)

    def begin() -> None:
        owner.check()
        keep_previous(model, adapter_file, callback)
        log.open(adapter_file.parent)
        write_record(adapter_file.parent, session.resolved, session.iters, {}, *messages, reference)

    return {"save": save, "save_best": save_best, "states": states, "metrics": metrics, "begin": begin}


class _Stopped(StateFiles):
    """Writes a numbered adapter file instead of a state when a run stops, because callers continue from such files."""

    def __init__(self, folder: Path, iters: int, save_adapters: Callable[[int], tuple[Path, Path | None]]):
        super().__init__(folder, keep=1)
        self.iters, self.save_adapters = iters, save_adapters
        self.how_to_go_on = (
            f"Its adapters are saved in {folder}. To continue, start from the numbered file of that iteration."
        )

    def save(self, state: RunState) -> Path:
        """Return the path of the iteration's numbered adapter file. Write the file if it is absent.

        After the last iteration nothing is written, because the final adapters are saved anyway.
        """
        numbered = self.folder / NUMBERED_ADAPTERS.format(state.iteration)
        if state.iteration < self.iters and not numbered.exists():
            self.save_adapters(state.iteration)
        return numbered
