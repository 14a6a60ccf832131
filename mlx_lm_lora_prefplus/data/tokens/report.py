"""What became of the rows of a split, counted while they are made."""

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
    """What became of a split.

    source: files or hub names. kind: of the rows. shape: the detected shape of the rows, in words.
    read, used: rows of the source, and pairs, unpaired rows or lists that came of them; these may be more than the
        rows, where a row gives several. dropped: reason in words → how many.
    truncated: used rows that were cut to max_seq_length.
    prompt_tokens: of all used rows (a shared prompt counts once). chosen_tokens: of chosen, desirable or best
        completions. rejected_tokens: of all others.
    masked_tokens: of the completions, those that do not count in the loss. unmasked: rows in which such tokens could
        not be found, because the chat template cannot be taken apart there, so that their completions count as a whole.
    desirable, undesirable: used rows of either label; 0 where there are none.
    unused: columns of the source that no row is made of.
    columns: those that the rows have. incomplete: number that pairs bring along (see `examples.NUMBERS`) → used pairs
        that have it, where that is some and not all, so that the column was left out.
    cached: whether the rows were ready from an earlier start.
    digest: of the rows, the tokenizer with its template, and the settings; the rows carry it as their fingerprint.
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

    @property
    def completion_tokens(self) -> int:
        """Tokens of all completions of the used rows."""
        return self.chosen_tokens + self.rejected_tokens


def counted(used: int, read: int, dropped: int) -> str:
    """`9 of 10` rows, or, where a row gives several examples, how many came of how many rows."""
    if used + dropped == read:
        return f"{used} of {read}"
    return f"{used} examples out of {read} rows"


@dataclass
class Tally:
    """The numbers of a report while they grow."""

    kind: RowKind
    read: int = 0
    totals: Counter[str] = field(default_factory=Counter)
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
            self.totals.update(
                used=1,
                truncated=int(row.truncated),
                prompt_tokens=len(row.prompt),
                chosen_tokens=lengths[0] if good else 0,
                rejected_tokens=sum(lengths[1:] if good else lengths),
                masked_tokens=sum(mask.count(0) for mask in row.masks or [] if mask),
                unmasked=int(not row.certain),
            )
            if self.kind == "unpaired":
                self.totals["desirable" if good else "undesirable"] += 1
            if self.kind == "paired":
                self.numbers.update(row.numbers.keys())

    def report(self, source: str, digest: str) -> SplitReport:
        """Raises UserError if no row could be used."""
        used = self.totals["used"]
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
        present = {name for name in LAYOUTS[self.kind] if name not in (*NUMBERS, *MASKS)}
        present |= {name for name in NUMBERS if self.numbers[name] == used}
        present |= set(MASKS) if self.totals["masked_tokens"] else set()
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
            **{name: self.totals[name] for name in names},
        )
