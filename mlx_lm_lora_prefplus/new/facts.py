"""Detect properties of the model and of the data, so that the user need not be asked."""

from itertools import islice
from typing import Any, NamedTuple

from mlx_lm.utils import _download, load_config, load_tokenizer

from ..data.formats.detect import detect
from ..data.formats.sample import SAMPLE, SourceSample
from ..data.sources.read import find_sources
from ..errors import UserError
from ..host.models import check_place, not_loaded
from ..plugin.protocol import RowKind
from ..settings import DataSettings


class ModelFacts(NamedTuple):
    """has_template: whether the model has a chat template. Only chat models have one. bits: bits per quantised weight;
    None if the model is not quantised. layers: number of layers, None if unknown. context: context length in tokens,
    None if unknown.
    """

    has_template: bool
    bits: int | None
    layers: int | None
    context: int | None

    @property
    def text(self) -> str:
        """Describe the model, for the user."""
        kind = "a chat model" if self.has_template else "a base model (it has no chat template)"
        weights = f"{self.bits}-bit weights" if self.bits else "weights that are not quantised"
        return ", ".join(
            [
                f"{kind} with {weights}",
                *([f"{self.layers} layers"] if self.layers else []),
                *([f"a context of {self.context} tokens"] if self.context else []),
            ]
        )


class DataFacts(NamedTuple):
    """kind: the kind of rows in the files, before any conversion. shape: their format in words.
    rows: split → number of rows.
    is_text: whether prompts are plain text instead of lists of messages.
    """

    kind: RowKind
    shape: str
    rows: dict[str, int]
    is_text: bool

    @property
    def text(self) -> str:
        """Describe the data, for the user."""
        counts = ", ".join(f"{count:,} {split}" for split, count in self.rows.items())
        return f"{self.kind} rows ({self.shape}): {counts}"


def model_facts(name: str) -> ModelFacts:
    """Read the config and the tokenizer of a model, but not its weights.

    Raises UserError if the model cannot be loaded.
    """
    check_place(name)
    try:
        folder = _download(name)  # or the local folder
        config = load_config(folder)
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # the hub and the tokenizer raise many kinds of errors
        raise not_loaded(name, error) from error
    of_text: dict[str, Any] = config.get("text_config") or {}
    known = {**of_text, **config}
    return ModelFacts(
        has_template=bool(getattr(tokenizer, "chat_template", None)),
        bits=(config.get("quantization") or {}).get("bits"),
        layers=known.get("num_hidden_layers"),
        context=known.get("max_position_embeddings"),
    )


def data_facts(settings: DataSettings) -> DataFacts:
    """Count the rows of each split and detect the format of the training rows.

    Raises UserError if there are no training rows, or if they do not have the columns of any known format.
    """
    sources = find_sources(settings, ("train", "valid", "test"))
    if "train" not in sources:
        raise UserError(
            f"There are no train rows in {settings.data}. Give a folder with train.jsonl (or .json, .parquet, .csv)."
        )
    source = sources["train"][0]
    sample = SourceSample([row for _, row in islice(source.rows(), SAMPLE)], source.name, source.features)
    if not sample.sample:
        raise UserError(f"{source.name}: contains no rows. Give a file with at least one row.")
    try:
        shape = detect(sample, "paired")
    except UserError:
        shape = detect(sample, "unpaired")
    rows = {split: sum(1 for one in of_split for _ in one.rows()) for split, of_split in sources.items()}
    is_text = isinstance(sample.first_value(sample.columns.prompt), str)
    return DataFacts(shape.kind, shape.description, rows, is_text)
