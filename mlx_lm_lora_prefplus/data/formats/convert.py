"""Convert rows of one kind to examples of the kind that a mode needs."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from ...plugin.protocol import RowKind
from .example import PAIR, Dropped, Example

Pairing = Literal["best_worst", "all_pairs"]
"""How a scored list becomes pairs: the best against the worst, or every two that differ in score."""

Examples = Iterator[Example | Dropped]

MADE_FROM: dict[RowKind, tuple[RowKind, ...]] = {
    "paired": ("paired", "ranked"),
    "unpaired": ("unpaired", "paired", "ranked"),
    "ranked": ("ranked", "paired"),
}
"""Wanted kind of examples → the kinds of rows from which they can be made."""

CONVERSIONS = {
    ("paired", "unpaired"): ", each pair as a desirable and an undesirable row",
    ("paired", "ranked"): ", each pair as a list of two",
    ("ranked", "unpaired"): ": the best as desirable, the worst as undesirable",
}
PAIRINGS = {"best_worst": ": best against worst", "all_pairs": ": every two with different scores"}


def as_kind(examples: Examples, have: RowKind, want: RowKind, pairing: Pairing) -> tuple[str, Examples]:
    """Convert examples to the kind `want`. Returns (description of the conversion, examples). The description is
    appended to that of the row format.

    have, want: kinds of rows. Unpaired rows cannot become another kind. If unpaired rows are wanted, a pair remains one
        example with two completions, and the encoder makes two rows of it.
    """
    if have != "ranked":
        return CONVERSIONS.get((have, want), ""), examples
    if want == "ranked":
        return "", _each(examples, lambda example: [_sorted(example)])
    if want == "unpaired" or pairing == "best_worst":
        return CONVERSIONS.get((have, want), PAIRINGS[pairing]), _each(examples, lambda example: [_best_worst(example)])
    return PAIRINGS[pairing], _each(examples, _all_pairs)


def _each(examples: Examples, make: Callable[[Example], Sequence[Example]]) -> Examples:
    for example in examples:
        if isinstance(example, Dropped):
            yield example
        elif len(set(example.scores)) < 2:
            yield Dropped(example.row, "tie")
        else:
            yield from make(example)


def _sorted(example: Example) -> Example:
    """Sort completions, best first. Equal scores keep their order."""
    order = sorted(range(len(example.scores)), key=lambda i: -example.scores[i])
    return example._replace(
        completions=[example.completions[i] for i in order], scores=[example.scores[i] for i in order]
    )


def _best_worst(example: Example) -> Example:
    scores = list(example.scores)
    return _pair(example, scores.index(max(scores)), scores.index(min(scores)))


def _all_pairs(example: Example) -> list[Example]:
    ranked = _sorted(example)
    places = itertools.combinations(range(len(ranked.scores)), 2)
    return [_pair(ranked, i, j) for i, j in places if ranked.scores[i] > ranked.scores[j]]


def _pair(example: Example, better: int, worse: int) -> Example:
    numbers = {"chosen_score": example.scores[better], "rejected_score": example.scores[worse]}
    completions = [example.completions[better], example.completions[worse]]
    return example._replace(completions=completions, scores=PAIR, numbers=numbers)
