"""Where metrics are sent beside the log: loggers by name, each through its own library, as training callbacks."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_lm.tuner.callbacks import SUPPORT_CALLBACK, TrainingCallback

from ..errors import UserError
from ..settings import RunSettings


class TensorBoardCallback(TrainingCallback):
    """Writes event files under `tensorboard/` in the adapter folder; training and validation share their charts.

    The arguments are those of mlx-lm's callbacks.
    """

    def __init__(self, project_name: str, log_dir: str, config: Mapping[str, Any], wrapped_callback: Any = None):
        from tensorboard.summary import Writer  # pyright: ignore[reportMissingImports]

        folder = Path(log_dir) / "tensorboard"
        self.writers = {split: Writer(str(folder / split)) for split in ("train", "val")}
        self.wrapped_callback = wrapped_callback

    def on_train_loss_report(self, train_info: dict) -> None:
        """Write what was reported of training."""
        self._write("train", train_info)
        if self.wrapped_callback:
            self.wrapped_callback.on_train_loss_report(train_info)

    def on_val_loss_report(self, val_info: dict) -> None:
        """Write what was reported of a validation."""
        self._write("val", val_info)
        if self.wrapped_callback:
            self.wrapped_callback.on_val_loss_report(val_info)

    def _write(self, split: str, info: Mapping[str, Any]) -> None:
        for name, value in info.items():
            if name != "iteration":
                self.writers[split].add_scalar(name.removeprefix(f"{split}_"), value, info["iteration"])
        self.writers[split].flush()


LOGGERS = {**SUPPORT_CALLBACK, "tensorboard": TensorBoardCallback}
"""Name of a logger, which is that of its package → its callback."""


def wanted(settings: RunSettings) -> dict[str, str]:
    """Name of each logger that the settings ask for → the key that does."""
    asked: dict[str, str] = {name: "report_to" for name in settings.report_to}
    return asked if settings.wandb is None else {**asked, "wandb": "wandb"}


def check_loggers(settings: RunSettings) -> None:
    """UserError where a logger's package is not installed; it names all of these."""
    missing = {name: key for name, key in wanted(settings).items() if find_spec(name) is None}
    if missing:
        keys = ", ".join(dict.fromkeys(missing.values()))
        raise UserError(
            f"{keys}: the package is not installed here: {', '.join(missing)}. Install it (pip install "
            f"{' '.join(missing)}), or leave it out."
        )


def with_loggers(settings: RunSettings, config: Mapping[str, Any], callback: Any = None) -> Any:
    """A callback that tells the loggers of the settings, then `callback`; the same as given where there is none.

    config: every key of the run with its value, for the loggers to show.
    """
    for name, key in wanted(settings).items():
        callback = LOGGERS[name](
            project_name=(settings.wandb if key == "wandb" else None) or settings.project_name,
            log_dir=settings.adapter_path,
            config=dict(config),
            wrapped_callback=callback,
        )
    return callback
