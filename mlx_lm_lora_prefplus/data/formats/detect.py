"""Which rows are these? The shape of a source is found from its first rows; each row becomes examples of one kind."""

import difflib
import itertools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import UserError
from ...plugin.protocol import RowKind
from ..sources.files import Rows
from . import paired, unpaired
from . import ranked as scored
from .convert import Pairing, as_kind
from .example import Dropped, Example
from .sample import RowFormat, SourceSample

SAMPLE = 100
"""Rows looked at to find the shape."""

FINDERS = {
    "paired": (paired.find, scored.find, unpaired.find),
    "unpaired": (unpaired.find, paired.find, scored.find),
    "ranked": (scored.find, paired.find, unpaired.find),
}
"""What a source is taken for, by the kind that is wanted; the first that fits."""

NAMES = {
    "paired": ("prompt_feature", "chosen_feature", "rejected_feature", "system_feature"),
    "unpaired": ("prompt_feature", "completion_feature", "label_feature", "system_feature"),
    "ranked": ("prompt_feature", "responses_feature", "scores_feature", "system_feature"),
}
"""The keys that name columns of such rows."""

UNUSED = {
    "paired": ("completion_feature", "label_feature"),
    "unpaired": ("preference_score_feature",),
    "ranked": ("completion_feature", "label_feature", "preference_score_feature"),
}
"""Keys without effect: the columns they name need not be there."""

ACCEPTED = """\
prompt, chosen, rejected (text or message lists; prompt may also be question, instruction or input, and the others \
chosen_response and rejected_response); \
chosen, rejected (conversations or transcripts with a shared start); \
prompt, responses, scores (or ranks); \
prompt or instruction, completions (scored responses, as UltraFeedback); \
prompt, response_1, response_2, preference_strength (HelpSteer2-preference); \
context, response1, response2, overall_preference (HelpSteer3); \
prompt, response, helpfulness (HelpSteer)"""


def read_examples(
    rows: Rows,
    source: str,
    features: Mapping[str, str | None],
    kind: RowKind = "paired",
    pairing: Pairing = "best_worst",
    raw: bool = False,
    usage: "Usage | None" = None,
) -> tuple[str, Iterator[Example | Dropped]]:
    """The shape of a source in words, and its rows as examples of one kind.

    An example of a pair has two completions, also where unpaired rows are wanted; that of a list has two or more.

    source: file or hub name for messages. features: column overrides by settings key, None to detect.
    raw: whether rows of text stay text instead of becoming messages. usage: told which columns are read.
    Raises UserError if the source is empty, the columns fit no shape, or a value has the wrong type.
    """
    first = list(itertools.islice(rows, SAMPLE))
    if not first:
        raise UserError(f"{source}: holds no rows. Give a file with at least one row.")
    features = {key: column for key, column in features.items() if key not in UNUSED[kind]}
    sample = SourceSample([row for _, row in first], source, features, raw)
    shape = detect(sample, kind)
    if usage:
        usage.seen.update(dict.fromkeys(column for _, row in first for column in row))
        first = [(number, _Watched(row, usage.read)) for number, row in first]
    words, examples = as_kind(shape.examples(itertools.chain(first, rows)), shape.kind, kind, pairing)
    if raw and sample.typical(sample.columns.system) and isinstance(sample.typical(sample.columns.prompt), str):
        words += f"; {sample.columns.system} is not used with prompt_format: raw"
    return shape.words + words, examples


@dataclass
class Usage:
    """The columns of the first rows of some sources. seen: all, in order. read: those that examples are made of."""

    seen: dict[str, None] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    @property
    def unused(self) -> list[str]:
        """The columns that no example is made of."""
        return [column for column in self.seen if column not in self.read]


class _Watched(dict[str, Any]):
    """A row that notes which of its values are read."""

    def __init__(self, row: Mapping[str, Any], read: set[str]):
        super().__init__(row)
        self._read = read

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        return super().get(key, default)


def detect(sample: SourceSample, kind: RowKind) -> RowFormat:
    """The shape of the rows, one that examples of this kind can be made of."""
    for key, column in sample.features.items():
        if column and column not in sample.seen:
            near = difflib.get_close_matches(column, sample.seen, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{sample.source}: {key} names column {column!r}, which is not there.{hint} "
                f"Columns seen: {_list(sample.seen)}. {typed({key: near[0] if near else None})}"
            )
    shape = next(filter(None, (find(sample) for find in FINDERS[kind])), None)
    if shape is None:
        raise _unknown(sample, kind)
    if shape.kind == "unpaired" != kind:
        raise UserError(
            f"{sample.source}: each row holds one completion with a label ({shape.words}), and this mode compares "
            "completions of one prompt. Choose a mode for unpaired rows, such as kto, or give chosen and rejected."
        )
    return shape


def _unknown(sample: SourceSample, kind: RowKind) -> UserError:
    keys = NAMES[kind]
    wanted = {key: sample.features.get(key) or key.removesuffix("_feature") for key in keys[1:3]}
    found = {
        key: next(iter(difflib.get_close_matches(column, sample.seen, 1)), None)
        for key, column in wanted.items()
        if column not in sample.seen
    }
    near = [f"{name!r} (for {wanted[key]})" for key, name in found.items() if name]
    hint = f" Close: {', '.join(near)}." if near else ""
    accepted = f"prompt, completion, label; {ACCEPTED}" if kind == "unpaired" else ACCEPTED
    return UserError(
        f"{sample.source}: these columns fit no shape of preference rows: {_list(sample.seen)}.{hint} "
        f"Accepted: {accepted}. Other names: set {', '.join(keys)}. "
        f"{typed(found if near else dict.fromkeys(keys[:3]))}"
    )


def typed(columns: Mapping[str, str | None]) -> str:
    """What to type to name columns: settings key → column, None where only the user knows."""
    flags = [
        f"--{key.replace('_', '-')} {shlex.quote(str(column)) if column else 'COLUMN'}"
        for key, column in columns.items()
    ]
    return f"Type: {' '.join(flags)}"


def _list(columns: list[str]) -> str:
    return ", ".join(f"{column!s:.40}" for column in columns[:30]) or "none"
