"""Counts of the used, dropped and truncated rows of a split, collected while the rows are made."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import UserError
from ...plugin.protocol import RowKind
from ..formats.detect import Usage
from ..formats.example import NUMBERS, Dropped
from .columns import LAYOUTS, MASKS
from .encode import TokenRow


@dataclass(frozen=True)
class SplitReport:
    """Counts of a split.

    source: files or hub names. kind: kind of the rows. shape: the detected format of the rows, in words.
    read: rows of the source. used: pairs, unpaired rows or lists made from them. A row of the source can give several
        of them, so `used` may exceed `read`. dropped: reason in words → number of rows. truncated: used rows that were
        cut to max_seq_length.
    prompt_tokens: tokens of the prompts (a shared prompt counts once). chosen_tokens: tokens of chosen, desirable or
        best completions. rejected_tokens: tokens of all other completions.
    masked_tokens: completion tokens that do not count in the loss. unmasked: rows whose completions count completely,
        because the chat template does not show which tokens should not count.
    desirable, undesirable: used rows of each label.
    unused: columns of the source that no row uses.
    columns: columns of the rows. incomplete: for each of `NUMBERS` that only some used pairs have: its name → how many
        pairs have it. Such a column is omitted.
    cached: whether the rows were loaded from the cache.
    digest: hash of the source rows, the tokenizer with its template, and the settings. Equal digests mean equal rows.
    pictures: number of pictures of the used rows. If a pair gives two rows, its pictures count twice.
    """

    source: str
    kind: RowKind
    shape: str
    read: int
    used: int
    dropped: dict[str, int]
    truncated: int
    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int
    masked_tokens: int
    unmasked: int
    desirable: int
    undesirable: int
    unused: list[str]
    columns: list[str]
    incomplete: dict[str, int]
    cached: bool
    digest: str
    pictures: int = 0

    @property
    def completion_tokens(self) -> int:
        """Return the tokens of all completions of the used rows."""
        return self.chosen_tokens + self.rejected_tokens


def counted(used: int, read: int, dropped: int) -> str:
    """Format the count of used rows: `9 of 10`, or `12 examples out of 10 rows` if rows give several examples."""
    if used + dropped == read:
        return f"{used} of {read}"
    return f"{used} examples out of {read} rows"


@dataclass
class Tally:
    """Counts the rows for a report."""

    kind: RowKind
    read: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    numbers: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)

    def count(self, rows: Any, advance: Any) -> Iterator[Any]:
        for row in rows:
            self.read += 1
            advance(1)
            yield row

    def drop(self, rows: Iterator[Dropped]) -> None:
        self.dropped.update(row.reason for row in rows)

    def use(self, rows: list[TokenRow]) -> None:
        for row in rows:
            lengths = [len(ids) for ids in row.completions]
            good = self.kind != "unpaired" or row.scores[0] > 0
            self.counts.update(
                used=1,
                truncated=int(row.truncated),
                prompt_tokens=len(row.prompt),
                chosen_tokens=lengths[0] if good else 0,
                rejected_tokens=sum(lengths[1:] if good else lengths),
                masked_tokens=sum(mask.count(0) for mask in row.masks or [] if mask),
                unmasked=int(not row.certain),
                pictures=len(row.pictures),
            )
            if self.kind == "unpaired":
                self.counts["desirable" if good else "undesirable"] += 1
            if self.kind == "paired":
                self.numbers.update(row.numbers.keys())

    def report(self, source: str, digest: str) -> SplitReport:
        """Return the report. Raises UserError if no row can be used."""
        used = self.counts["used"]
        if not used:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self.dropped.most_common())
            raise UserError(
                f"{source}: none of the {self.read} rows can be used. Rows left out: {reasons}. "
                f"The rows were read as {'; '.join(self.shapes)}."
            )
        names = (
            *("truncated", "prompt_tokens", "chosen_tokens", "rejected_tokens", "masked_tokens", "unmasked"),
            *("desirable", "undesirable"),
        )
        present = {name for name in LAYOUTS[self.kind] if name not in (*NUMBERS, *MASKS, "pictures")}
        present |= {name for name in NUMBERS if self.numbers[name] == used}
        present |= set(MASKS) if self.counts["masked_tokens"] else set()
        present |= {"pictures"} if self.counts["pictures"] else set()
        return SplitReport(
            source=source,
            kind=self.kind,
            shape="; ".join(self.shapes),
            read=self.read,
            used=used,
            dropped=dict(self.dropped.most_common()),
            unused=self.usage.unused,
            columns=[name for name in LAYOUTS[self.kind] if name in present],
            incomplete={name: count for name, count in self.numbers.items() if count < used},
            cached=False,
            digest=digest,
            pictures=self.counts["pictures"],
            **{name: self.counts[name] for name in names},
        )
