"""Experiment loggers: each sends everything in `metrics.jsonl` to one tracking library."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ...engine.files.metrics_file import Logger
from ...errors import UserError
from ...settings import RunSettings

PREFIXES = {"train": "train", "valid": "eval", "test": "test"}
"""Split → the prefix of its metrics in Hugging Face's trainers, and therefore in TRL."""

SAMPLE_COLUMNS = ("iteration", "prompt", "policy", "reference")
WARNING_COLUMNS = ("iteration", "warning", "text")

Row = Sequence[Any]


class LoggerInputs(NamedTuple):
    """project: its name; None for the library's default. folder: the adapter folder. config: every key of the run."""

    project: str | None
    folder: Path
    config: Mapping[str, Any]


class WandB:
    """Weights & Biases: metrics by step, samples and warnings as tables."""

    def __init__(self, inputs: LoggerInputs):
        import wandb  # pyright: ignore[reportMissingImports]

        self.library, self.rows = wandb, {"samples": list[Row](), "warnings": list[Row]()}
        self.run = wandb.init(
            project=inputs.project, name=inputs.folder.name, dir=str(inputs.folder), config=dict(inputs.config)
        )

    def metrics(self, split: str, iteration: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a report."""
        self.run.log(_prefixed(split, values), step=iteration)

    def warning(self, iteration: int, name: str, text: str) -> None:
        """Log all warnings so far, because W&B displays only the latest version of a table."""
        self._table("warnings", WARNING_COLUMNS, iteration, [(iteration, name, text)])

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log all samples so far."""
        self._table("samples", SAMPLE_COLUMNS, rows[0]["iteration"], [[row[c] for c in SAMPLE_COLUMNS] for row in rows])

    def _table(self, name: str, columns: Sequence[str], iteration: int, rows: Sequence[Row]) -> None:
        self.rows[name] += rows
        table = self.library.Table(columns=list(columns), data=[list(row) for row in self.rows[name]])
        self.run.log({name: table}, step=iteration)

    def close(self) -> None:
        """Send buffered data and finish."""
        self.run.finish()


class SwanLab:
    """SwanLab: metrics by step, samples as tables, warnings as text."""

    def __init__(self, inputs: LoggerInputs):
        import swanlab  # pyright: ignore[reportMissingImports]

        self.library = swanlab
        swanlab.init(
            project=inputs.project,
            experiment_name=inputs.folder.name,
            logdir=str(inputs.folder / "swanlog"),
            config=dict(inputs.config),
        )

    def metrics(self, split: str, iteration: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a report."""
        self.library.log(_prefixed(split, values), step=iteration)

    def warning(self, iteration: int, name: str, text: str) -> None:
        """Log the text of a warning."""
        self.library.log({f"warnings/{name}": self.library.Text(text)}, step=iteration)

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the samples of one evaluation."""
        table = self.library.echarts.Table()
        table.add(list(SAMPLE_COLUMNS), [[row[c] for c in SAMPLE_COLUMNS] for row in rows])
        self.library.log({"samples": table}, step=rows[0]["iteration"])

    def close(self) -> None:
        """Send buffered data and finish."""
        self.library.finish()


class TensorBoard:
    """TensorBoard event files under `tensorboard/` in the adapter folder.

    Each split is a TensorBoard run (`train`, `eval`, `test`), so that splits share charts. Samples (Markdown tables)
    and warnings are in the run `text`.
    """

    def __init__(self, inputs: LoggerInputs):
        self.folder = inputs.folder / "tensorboard"
        self.writers: dict[str, Any] = {}
        self.texts: Any = None

    def metrics(self, split: str, iteration: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a report."""
        from tensorboard.summary import Writer  # pyright: ignore[reportMissingImports]

        run = PREFIXES[split]
        if run not in self.writers:
            self.writers[run] = Writer(str(self.folder / run))
        writer = self.writers[run]
        for name, value in values.items():
            writer.add_scalar(name, value, iteration)
        writer.flush()

    def warning(self, iteration: int, name: str, text: str) -> None:
        """Write the text of a warning."""
        self._text(f"warnings/{name}", iteration, text)

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the samples of one evaluation as a table."""
        lines = ["| " + " | ".join(SAMPLE_COLUMNS) + " |", "|---" * len(SAMPLE_COLUMNS) + "|"]
        lines += ["| " + " | ".join(_cell(row[column]) for column in SAMPLE_COLUMNS) + " |" for row in rows]
        self._text("samples", rows[0]["iteration"], "\n".join(lines))

    def _text(self, tag: str, iteration: int, text: str) -> None:
        from time import time

        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
        from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore
        from tensorboard.compat.proto.types_pb2 import DT_STRING  # pyright: ignore
        from tensorboard.plugins.text import metadata  # pyright: ignore[reportMissingImports]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

        self.texts = self.texts or EventFileWriter(str(self.folder / "text"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode("utf-8", "replace")])
        about = metadata.create_summary_metadata(display_name=tag, description="")
        value = Summary.Value(tag=tag, metadata=about, tensor=tensor)
        summary = Summary(value=[value])
        self.texts.add_event(Event(wall_time=time(), step=iteration, summary=summary))
        self.texts.flush()

    def close(self) -> None:
        """Close the files."""
        for writer in (*self.writers.values(), *([self.texts] if self.texts else [])):
            writer.close()


LOGGERS: dict[str, Callable[[LoggerInputs], Logger]] = {"wandb": WandB, "swanlab": SwanLab, "tensorboard": TensorBoard}
"""Name of a logger, which is also the name of its package → its class."""


def requested_loggers(settings: RunSettings) -> dict[str, str]:
    """Name of each logger that the settings request → the key that requests it."""
    names: dict[str, str] = {name: "report_to" for name in settings.report_to}
    return names if settings.wandb is None else {**names, "wandb": "wandb"}


def check_loggers(settings: RunSettings) -> None:
    """Raise a UserError that names every logger whose package is not installed."""
    missing = {name: key for name, key in requested_loggers(settings).items() if find_spec(name) is None}
    if missing:
        keys = ", ".join(dict.fromkeys(missing.values()))
        raise UserError(
            f"{keys}: the package is not installed here: {', '.join(missing)}. Install it (pip install "
            f"{' '.join(missing)}), or remove it from the settings."
        )


@contextmanager
def open_loggers(settings: RunSettings, config: Mapping[str, Any], *, first: bool = True) -> Iterator[list[Logger]]:
    """Start the loggers of the settings, and close them at the end.

    config: every key of the run with its value, for display. first: whether this is the process that writes files.
    """
    loggers, folder = list[Logger](), Path(settings.adapter_path or ".")
    try:
        for name, key in requested_loggers(settings).items() if first else ():
            project = (settings.wandb if key == "wandb" else None) or settings.project_name
            loggers.append(LOGGERS[name](LoggerInputs(project, folder, config)))
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


def _prefixed(split: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{PREFIXES[split]}/{name}": value for name, value in values.items()}


def _cell(value: Any) -> str:
    """Return a value as a cell of a Markdown table."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\r", "").replace("\n", "<br>")
