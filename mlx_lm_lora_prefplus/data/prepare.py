"""Settings and a tokenizer → the token rows of each split, with a report of what became of the data."""

import contextlib
import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlx_lm_lora_prefplus.data import cache
from mlx_lm_lora_prefplus.data.columns import read_pairs
from mlx_lm_lora_prefplus.data.pairs import Dropped, Pair
from mlx_lm_lora_prefplus.data.read import Source, find_sources
from mlx_lm_lora_prefplus.data.tokens import Encoder, TokenRow
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.settings import DataSettings

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 2
"""Raised when the same data and settings become other tokens than before, so that old caches are not used."""

BATCH = 512
"""Pairs tokenised and written at a time."""


@dataclass(frozen=True)
class SplitReport:
    """What became of a split.

    source: files or hub names. shape: the detected shape of the rows, in words.
    read, used: rows of the source, and pairs that came of them. dropped: reason in words → rows.
    truncated: used pairs that were cut to max_seq_length.
    prompt_tokens, chosen_tokens, rejected_tokens: tokens of all used pairs (a shared prompt counts once).
    cached: whether the rows were ready from an earlier start.
    digest: of the rows, the tokenizer with its template, and the settings; the rows carry it as their fingerprint.
    """

    source: str
    shape: str
    read: int
    used: int
    dropped: dict[str, int]
    truncated: int
    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int
    cached: bool
    digest: str


class Split(NamedTuple):
    """rows: memory-mapped; columns prompt, chosen, rejected (token ids, int32; the completions without the
    prompt) and row (row number in the source, from 1; in JSON Lines the line number).
    """

    rows: "Dataset"
    report: SplitReport


def prepare(
    settings: DataSettings,
    tokenizer: Any,
    splits: Sequence[str],
    *,
    add_bos: bool = False,
    progress: bool = True,
    cache_dir: Path | None = None,
) -> dict[str, Split]:
    """Find, read, tokenise and store the rows of `splits` ("train", "valid", "test").

    A split that does not exist is left out. Rows are streamed to disk and kept there for the next start.

    tokenizer: mlx_lm's TokenizerWrapper with a chat template.
    add_bos: put the BOS token first where the template leaves it out and the tokenizer itself would not.
    progress: show how many rows are done.
    cache_dir: where to keep token rows (default: see `cache.folder`).

    Raises UserError for data that cannot work, naming file, row and column.
    """
    if unknown := [name for name in splits if name not in ("train", "valid", "test")]:
        raise ValueError(f"splits: {unknown} unknown; allowed are train, valid, test")
    sources = find_sources(settings, splits)
    if not sources:
        return {}
    encoder = Encoder(tokenizer, settings, add_bos=add_bos)
    folder = cache.folder("tokens", cache_dir)
    return {split: _split(sources[split], encoder, folder, progress) for split in splits if split in sources}


def _split(sources: list[Source], encoder: Encoder, folder: Path, progress: bool) -> Split:
    name = " + ".join(source.name for source in sources)
    inputs = [FORMAT, encoder.digest(), *([source.digest(), dict(source.features)] for source in sources)]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]
    kept = cache.load(folder, digest)
    if kept is None:
        tally = _Tally()
        with cache.Writer(folder, digest) as writer, _bar(name, progress) as advance:
            for source in sources:
                _tokenise(source, encoder, writer, tally, advance)
            report = tally.report(name, digest)
            writer.keep(asdict(report))
        kept = cache.load(folder, digest)
        if kept is None:
            raise OSError(f"{folder}: the token rows just written cannot be read back")
        return Split(kept[0], report)
    rows, report = kept
    return Split(rows, SplitReport(**{**report, "source": name, "cached": True, "digest": digest}))


def _tokenise(source: Source, encoder: Encoder, writer: cache.Writer, tally: "_Tally", advance: Any) -> None:
    """Stream one source through the encoder into the writer."""
    counted = tally.count(source.rows(), advance)
    shape, pairs = read_pairs(counted, source.name, source.features)
    tally.shapes[shape] += 1
    while batch := list(itertools.islice(pairs, BATCH)):
        tally.drop(item for item in batch if isinstance(item, Dropped))
        results = list(encoder([item for item in batch if isinstance(item, Pair)], source.name))
        tally.drop(item for item in results if isinstance(item, Dropped))
        rows = [item for item in results if isinstance(item, TokenRow)]
        tally.use(rows)
        writer.write(rows)


@dataclass
class _Tally:
    """The numbers of a report while they grow."""

    read: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)

    def count(self, rows: Any, advance: Any) -> Iterator[Any]:
        for row in rows:
            self.read += 1
            advance(1)
            yield row

    def drop(self, rows: Iterator[Dropped]) -> None:
        self.dropped.update(row.reason for row in rows)

    def use(self, rows: list[TokenRow]) -> None:
        for row in rows:
            self.totals.update(
                used=1,
                truncated=int(row.truncated),
                prompt_tokens=len(row.prompt),
                chosen_tokens=len(row.chosen),
                rejected_tokens=len(row.rejected),
            )

    def report(self, source: str, digest: str) -> SplitReport:
        """Raises UserError if no row could be used."""
        if not self.totals["used"]:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self.dropped.most_common())
            raise UserError(
                f"{source}: none of the {self.read} rows can be used. Rows left out: {reasons}. "
                f"The rows were read as {'; '.join(self.shapes)}."
            )
        names = ("used", "truncated", "prompt_tokens", "chosen_tokens", "rejected_tokens")
        return SplitReport(
            source=source,
            shape="; ".join(self.shapes),
            read=self.read,
            dropped=dict(self.dropped.most_common()),
            cached=False,
            digest=digest,
            **{name: self.totals[name] for name in names},
        )


@contextlib.contextmanager
def _bar(name: str, show: bool) -> Iterator[Any]:
    """A progress line without a rate; yields the function that advances it by n rows.

    Standard error may be an object with only `write` and `flush`, or not be there at all.
    """
    from tqdm import tqdm

    bar = tqdm(
        desc=f"Tokenising {name}",
        bar_format="{desc}: {n_fmt} rows, {elapsed}",
        file=sys.stderr,
        disable=not show or sys.stderr is None,
        mininterval=0.5,
        ncols=100,
    )
    try:
        yield bar.update
    finally:
        bar.close()
