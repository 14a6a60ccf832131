"""The distinct prompts of the data that a config names, as tokens."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..data.formats.example import Dropped, Example
from ..data.formats.prompts import read_prompts
from ..data.formats.sample import SAMPLE
from ..data.sources.pictures import shows_pictures
from ..data.sources.read import Source, find_sources
from ..data.tokens.encode import Encoder
from ..errors import UserError
from ..host import models
from ..host.config.resolve import Resolved
from ..host.run.rows import ADD_ENDS
from ..settings import DataSettings

SPLITS = ("train", "valid", "test")


class Prompt(NamedTuple):
    """One prompt.

    split: "train", "valid" or "test". example: its messages or text, tools and template arguments.
    tokens: the prompt's tokens, including the opening of the answer. row: the data row of the prompt, for reward
        functions that read other columns.
    """

    split: str
    example: Example
    tokens: list[int]
    row: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Return the content of the prompt as text. Two prompts are equal if these texts are equal."""
        example = self.example
        return json.dumps([example.prompt, example.tools, dict(example.template_kwargs)], sort_keys=True)

    @property
    def text(self) -> str:
        """Return the prompt as text: the raw prompt, or the messages; for a single message only its content."""
        prompt = self.example.prompt
        if isinstance(prompt, str):
            return prompt
        messages = prompt or []
        if len(messages) == 1:
            return messages[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


@dataclass
class Prompts:
    """The distinct prompts, in the order of their first row.

    rows: rows read of each split. duplicates: rows whose prompt occurred earlier, in this split or another.
    dropped: reason why a row gives no prompt → number of such rows. formats: the detected row formats.
    """

    prompts: list[Prompt] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    formats: list[str] = field(default_factory=list)


def refuse_pictures(data: DataSettings, command: str) -> None:
    """Raise a UserError if one of the first rows of a source has a picture. `collect` checks the other rows."""
    for sources in find_sources(data, SPLITS).values():
        for source in sources:
            if shows_pictures(source.rows(), SAMPLE):
                raise UserError(
                    f"{command}: {source.name} contains rows with pictures, and answers to pictures are not generated. "
                    "Give prompts without pictures. To train on rows with pictures, write the answers yourself and use "
                    "mlx_lm_lora.train."
                )


def collect(resolved: Resolved, tokenizer: Any, limit: int | None, splits: tuple[str, ...] = SPLITS) -> Prompts:
    """Collect the prompts of a run's data.

    limit: largest number of distinct prompts of each split; None for all.

    Raises:
        UserError: There are no prompts, or the data cannot be read.
    """
    data = resolved.data
    encoder = Encoder(
        tokenizer,
        data,
        add_bos=models.uses_fallback_template(tokenizer),
        add_ends=resolved.trainer.mode in ADD_ENDS,
    )
    found, seen = Prompts(), set[str]()
    for split, sources in find_sources(data, splits).items():
        count = 0
        for source in sources:
            for item in _read(source, found, encoder.raw):
                found.rows[split] += 1
                if isinstance(item, Dropped):
                    found.dropped[item.reason] += 1
                    continue
                prompt = Prompt(split, item.example, encoder.prompt(item.example, source.name), item.row)
                if reason := _unusable(prompt, data.max_seq_length):
                    found.dropped[reason] += 1
                elif (key := prompt.key) in seen:
                    found.duplicates += 1
                elif limit is None or count < limit:
                    seen.add(key)
                    found.prompts.append(prompt)
                    count += 1
                else:
                    break
    if not found.prompts:
        reasons = "; ".join(f"{count} rows: {reason}" for reason, count in found.dropped.items())
        raise UserError(
            f"data: {data.hf_dataset or data.data} contains no prompts ({reasons or 'no rows'}). Give a file, a folder "
            "or a hub name whose rows have a prompt."
        )
    return found


def _read(source: Source, found: Prompts, raw: bool) -> Iterator[Any]:
    shape, items = read_prompts(source.rows(), source.name, source.features, raw)
    if shape not in found.formats:
        found.formats.append(shape)
    return items


def _unusable(prompt: Prompt, longest: int) -> str | None:
    if not prompt.tokens:
        return "empty prompt"
    return "prompt as long as max_seq_length" if len(prompt.tokens) >= longest else None
