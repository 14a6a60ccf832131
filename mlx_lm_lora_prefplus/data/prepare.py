"""Make the token rows of each split from the settings and a tokenizer, and report the rows used and dropped."""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..plugin.protocol import RowKind
from ..settings import DataSettings
from ..storage import cache_folder
from .formats.convert import Pairing
from .formats.detect import read_examples
from .formats.example import Dropped, Example
from .sources.pictures import Picture, located, read_content
from .sources.read import Source, find_sources
from .stream import Stream
from .tokens import cache
from .tokens.columns import LAYOUTS, columns_of
from .tokens.encode import Encoder, TokenRow
from .tokens.report import SplitReport, Tally
from .tokens.rows import TokenRows

FORMAT = 6
"""Version of the token rows. Increase it if the same data and settings give other tokens than before, so that old
caches are not used.
"""

BATCH = 512
"""Number of examples that are tokenised and written together."""


class Split(NamedTuple):
    """The rows of one split.

    rows: memory-mapped, unless they are streamed.
    stream: the source of further rows, if the rows are streamed. `rows` and `report` then belong to its first window.
    """

    rows: TokenRows
    report: SplitReport
    stream: Stream | None = None


def prepare(
    settings: DataSettings,
    tokenizer: Any,
    splits: Sequence[str],
    *,
    kind: RowKind = "paired",
    add_bos: bool = False,
    add_ends: bool = False,
    progress: bool = True,
    cache_dir: Path | None = None,
) -> dict[str, Split]:
    """Find, read, tokenise and store the rows of `splits` ("train", "valid", "test").

    The result omits splits that do not exist. Rows are written to disk and reused at the next start. With `streaming`,
    training rows are kept in memory, one window at a time.

    tokenizer: mlx_lm's TokenizerWrapper with a chat template.
    kind: the kind of rows to make. Pairs and lists can become rows of any kind. Unpaired rows stay unpaired.
    add_bos: add the BOS token if the template omits it and the tokenizer's own `encode` adds it.
    add_ends: with `prompt_format: raw`, begin every row with BOS and end it with EOS (see `Encoder`).
    progress: show a progress line with the number of rows read.
    cache_dir: folder for token rows (default: see `cache_folder.cache_folder`).

    Raises UserError, which names file, row and column, for data that cannot be used.
    """
    if unknown := [name for name in splits if name not in ("train", "valid", "test")]:
        raise ValueError(f"splits: {unknown} unknown. Allowed are train, valid, test")
    sources = find_sources(settings, splits)
    if not sources:
        return {}
    encoder = Encoder(tokenizer, settings, add_bos=add_bos, add_ends=add_ends, apart=kind == "unpaired")
    preparation = _Preparation(kind, settings.pairing, encoder, progress)
    folder = cache_folder.folder("tokens", cache_dir)
    rows = {}
    for split in (name for name in splits if name in sources):
        if split == "train" and settings.streaming:
            rows[split] = preparation.stream(sources[split], settings.shuffle_buffer)
        else:
            rows[split] = preparation.split(sources[split], folder)
    cache_folder.trim(folder.parent)
    return rows


@dataclass(frozen=True)
class _Preparation:
    """Makes the rows of all splits with the same settings."""

    kind: RowKind
    pairing: Pairing
    encoder: Encoder
    progress: bool

    def split(self, sources: list[Source], folder: Path) -> Split:
        name = " + ".join(source.name for source in sources)
        digest = self.digest(sources)
        stored = cache.load(folder, digest)
        cached = stored is not None
        if stored is None:
            tally = Tally(self.kind)
            folder = cache_folder.writable_folder(folder)
            with cache.Writer(folder, digest, LAYOUTS[self.kind]) as writer, _bar(name, self.progress) as bar:
                for source in sources:
                    examples = self.examples(source, tally, bar.update)
                    while batch := list(itertools.islice(examples, BATCH)):
                        writer.write(columns_of(self.kind, self.token_rows(batch, source.name, tally)))
                writer.keep(asdict(tally.report(name, digest)))
            stored = cache.load(folder, digest)
        if stored is None:
            raise UserError(
                f"{folder}: the token rows that were just written there cannot be read. Allow reading in this folder, "
                "or name another folder in the environment variable MLX_LM_LORA_PREFPLUS_CACHE."
            )
        rows, report = stored
        return Split(rows, SplitReport(**{**report, "source": name, "cached": cached, "digest": digest}))

    def stream(self, sources: list[Source], buffer: int) -> Split:
        """Open a stream of training rows, and read its first window."""
        stream = Stream(self, sources, buffer, self.digest(sources))
        first = stream.window(0)
        if first is None:
            raise stream.nothing_to_use()
        return Split(*first, stream)

    def digest(self, sources: list[Source]) -> str:
        """Hash everything that determines the rows."""
        pairing = self.pairing if self.kind == "paired" else None
        content = [[source.digest(), dict(source.features)] for source in sources]
        inputs = [FORMAT, self.kind, pairing, self.encoder.digest(), *content]
        found = hashlib.sha256(json.dumps(inputs).encode())
        if self.encoder.pictures:
            for path in self._picture_files(sources):
                found.update(f"{path} {hashlib.sha256(read_content(Picture(path))).hexdigest()} ".encode())
        return found.hexdigest()[:32]

    def _picture_files(self, sources: list[Source]) -> Iterator[str]:
        """Yield the path of each picture that is a separate file, in the order of the rows. Token rows contain these
        paths.
        """
        for source in sources:
            for example in self.examples(source, Tally(self.kind), lambda count: None):
                for picture in example.pictures if isinstance(example, Example) else ():
                    if picture.path is not None:
                        yield picture.path

    def examples(self, source: Source, tally: Tally, advance: Any) -> Iterator[Example | Dropped]:
        """Return the examples of a source. tally: counts its rows and records its format."""
        counted = tally.count(source.rows(), advance)
        raw = self.encoder.raw
        shape, examples = read_examples(
            counted,
            source.name,
            source.features,
            self.kind,
            self.pairing,
            raw,
            tally.usage,
            bool(self.encoder.pictures),
        )
        tally.shapes[shape] += 1
        return (_located(example, source) for example in examples) if self.encoder.pictures else examples

    def token_rows(self, examples: Sequence[Example | Dropped], source: str, tally: Tally) -> list[TokenRow]:
        """Return the token rows of examples. tally: counts the token rows and the dropped examples."""
        tally.drop(item for item in examples if isinstance(item, Dropped))
        results = list(self.encoder([item for item in examples if isinstance(item, Example)], source))
        tally.drop(item for item in results if isinstance(item, Dropped))
        rows = [item for item in results if isinstance(item, TokenRow)]
        tally.use(rows)
        return rows


def _located(example: Example | Dropped, source: Source) -> Example | Dropped:
    """Return the example with absolute paths in place of its pictures' relative paths."""
    if isinstance(example, Dropped) or not example.pictures:
        return example
    where = f"{source.name}, row {example.row}"
    return example._replace(pictures=[located(picture, source.folder, where) for picture in example.pictures])


def _bar(name: str, visible: bool) -> Any:
    """Return a progress line without a rate.

    Standard error may be None, or an object that has only `write` and `flush`.
    """
    from tqdm import tqdm

    return tqdm(
        desc=name,
        bar_format="Tokenising, {n_fmt} rows, {elapsed}: {desc}",  # tqdm truncates the end of a long line
        file=sys.stderr,
        disable=not visible or sys.stderr is None,
        mininterval=0.5,
        ncols=100,
    )
