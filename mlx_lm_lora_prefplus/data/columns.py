"""Which rows are these? The shape of a source is found from its first rows; each row becomes one `Pair`."""

import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from mlx_lm_lora_prefplus.data import messages as chat
from mlx_lm_lora_prefplus.data import scored
from mlx_lm_lora_prefplus.data.files import Rows
from mlx_lm_lora_prefplus.data.messages import Messages
from mlx_lm_lora_prefplus.data.pairs import Dropped, Pair
from mlx_lm_lora_prefplus.errors import UserError

SAMPLE = 100
"""Rows looked at to find the shape."""

PROMPTS = ("prompt", "question", "instruction", "input", "context", "conversations", "messages")
"""Names of the prompt column, in order of preference."""

ACCEPTED = """\
prompt, chosen, rejected (text or message lists; prompt may also be question, instruction or input); \
chosen, rejected (conversations or transcripts with a shared start); \
prompt or instruction, completions (scored responses, as UltraFeedback); \
prompt, response_1, response_2, preference_strength (HelpSteer2-preference); \
context, response1, response2, overall_preference (HelpSteer3); \
prompt, response, helpfulness (HelpSteer)"""


class Shape(NamedTuple):
    """words: the shape for people. pairs: the rows of a stream, each as a Pair or with the reason it is not."""

    words: str
    pairs: Callable[[Rows], Iterator[Pair | Dropped]]


class Columns(NamedTuple):
    """Which column is what; None where there is none. extra: text that follows the prompt (Alpaca's `input`)."""

    prompt: str | None
    chosen: str
    rejected: str
    system: str | None
    extra: str | None


def read_pairs(rows: Rows, source: str, features: Mapping[str, str | None]) -> tuple[str, Iterator[Pair | Dropped]]:
    """The shape of a source in words, and its rows as pairs.

    source: file or hub name for messages. features: column overrides by settings key, None to detect.
    Raises UserError if the source is empty, the columns fit no shape, or a value has the wrong type.
    """
    first = list(itertools.islice(rows, SAMPLE))
    if not first:
        raise UserError(f"{source}: holds no rows. Give a file with at least one row.")
    shape = detect([row for _, row in first], source, features)
    return shape.words, shape.pairs(itertools.chain(first, rows))


def detect(sample: list[dict[str, Any]], source: str, features: Mapping[str, str | None]) -> Shape:
    """The shape of rows like those of `sample`."""
    seen = list(dict.fromkeys(itertools.chain.from_iterable(sample)))
    for key, column in features.items():
        if column and column not in seen:
            near = difflib.get_close_matches(column, seen, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{source}: {key} names column {column!r}, which is not there.{hint} Columns seen: {_list(seen)}."
            )
    prompt = features.get("prompt_feature") or next((name for name in PROMPTS if name in seen), None)
    columns = Columns(
        prompt=prompt,
        chosen=features.get("chosen_feature") or "chosen",
        rejected=features.get("rejected_feature") or "rejected",
        system=features.get("system_feature") or ("system" if "system" in seen else None),
        extra="input" if prompt == "instruction" and "input" in seen else None,
    )
    if columns.chosen in seen and columns.rejected in seen:
        return _preference(sample, source, columns)
    for shape in scored.SHAPES:
        if shape.fits(seen, prompt):
            return Shape(shape.words, partial(shape.pairs, source=source, prompt=prompt))
    near = [
        f"{name!r} (for {wanted})"
        for wanted in (columns.chosen, columns.rejected)
        if wanted not in seen
        for name in difflib.get_close_matches(wanted, seen, 1)
    ]
    hint = f" Close: {', '.join(near)}; name them with chosen_feature and rejected_feature." if near else ""
    raise UserError(
        f"{source}: these columns fit no shape of preference rows: {_list(seen)}.{hint} Accepted: {ACCEPTED}. "
        "Other names: set prompt_feature, chosen_feature, rejected_feature, system_feature."
    )


def _preference(sample: list[dict[str, Any]], source: str, columns: Columns) -> Shape:
    def typical(column: str | None) -> Any:
        return next((row[column] for row in sample if column and row.get(column)), None)

    prompt, chosen = typical(columns.prompt), typical(columns.chosen)
    convert = _row
    if columns.prompt is None and isinstance(chosen, str):
        if chat.is_transcript(chosen):
            words, convert = "Human/Assistant transcripts", _transcript_row
        else:
            words, convert = "chosen and rejected as plain text (the shared start is the prompt)", _plain_row
    elif columns.prompt is None:
        words = "chosen and rejected as conversations (the shared start is the prompt)"
    else:
        kind = "text" if isinstance(prompt, str) else "messages"
        if isinstance(prompt, str) and chat.is_transcript(prompt):
            kind = "a Human/Assistant transcript"
        words = f"{columns.prompt} as {kind}, {columns.chosen} and {columns.rejected} as "
        words += "text" if isinstance(chosen, str) else "messages"

    def pairs(rows: Rows) -> Iterator[Pair | Dropped]:
        for number, row in rows:
            if chat.is_empty(row.get(columns.chosen)) or chat.is_empty(row.get(columns.rejected)):
                yield Dropped(number, "empty completion")
            else:
                yield convert(row, number, f"{source}, row {number}", columns)

    return Shape(words, pairs)


def _row(row: dict[str, Any], number: int, where: str, columns: Columns) -> Pair | Dropped:
    """A row of messages, or of text with a prompt column."""
    chosen, rejected = row[columns.chosen], row[columns.rejected]
    given = row.get(columns.prompt) if columns.prompt else None
    if isinstance(given, str) and chat.is_transcript(given):
        start = chat.parse_transcript(given)
        chosen, rejected = (
            text.removeprefix(given).removeprefix(" ") if isinstance(text, str) else text for text in (chosen, rejected)
        )
    elif given is None:
        start = []
    else:
        start = chat.as_messages(given, where, columns.prompt or "", "user")
        if start and columns.extra and isinstance(row.get(columns.extra), str) and row[columns.extra]:
            start[-1]["content"] += "\n" + row[columns.extra]
    answers = [
        chat.as_messages(value, where, name, "assistant")
        for name, value in ((columns.chosen, chosen), (columns.rejected, rejected))
    ]
    prompt, *completions = _split(start, answers, replace=isinstance(given, str))
    if not prompt and columns.prompt and given is None:
        return Dropped(number, "empty prompt")
    if any(message["role"] in ("user", "system") for answer in completions for message in answer):
        return Dropped(number, "chosen and rejected have different prompts")
    if columns.system and (system := row.get(columns.system)):
        if not isinstance(system, str):
            raise chat.wrong_type(where, columns.system, system, "text")
        if not prompt or prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": system}, *prompt]
    return Pair(number, prompt, completions[0], completions[1], chat.as_tools(row.get("tools"), where))


def _split(start: Messages, answers: list[Messages], replace: bool) -> tuple[Messages, Messages, Messages]:
    """Prompt messages, chosen and rejected completion.

    start: the prompt column. answers: completions alone, or whole conversations; then their shared start is
    the prompt, in place of a prompt that was bare text (replace) or after one that is not repeated.
    """
    if start and all(answer[: len(start)] == start for answer in answers):
        whole = True
    else:
        whole = not start or any(answer[0]["role"] in ("user", "system") for answer in answers)
        if whole and not replace:
            answers = [start + answer for answer in answers]
    if not whole:
        return start, answers[0], answers[1]
    shared = min(chat.shared_start(*answers), *(len(answer) - 1 for answer in answers))
    return answers[0][:shared], answers[0][shared:], answers[1][shared:]


def _transcript_row(row: dict[str, Any], number: int, where: str, columns: Columns) -> Pair | Dropped:
    """HH: both columns hold the whole dialogue; the last assistant turn is the completion."""
    parsed = []
    for column in (columns.chosen, columns.rejected):
        if not isinstance(row[column], str):
            raise chat.wrong_type(where, column, row[column], "a Human/Assistant transcript as text")
        turns = chat.parse_transcript(row[column])
        if not turns or turns[-1]["role"] != "assistant":
            return Dropped(number, "no assistant turn at the end of the transcript")
        parsed.append(turns)
    texts = {columns.chosen: parsed[0], columns.rejected: parsed[1]}
    return _row({**row, **texts}, number, where, columns)


def _plain_row(row: dict[str, Any], number: int, where: str, columns: Columns) -> Pair:
    for column in (columns.chosen, columns.rejected):
        if not isinstance(row[column], str):
            raise chat.wrong_type(where, column, row[column], "text, as in the first rows")
    return Pair(number, None, row[columns.chosen], row[columns.rejected], None)


def _list(columns: list[str]) -> str:
    return ", ".join(map(str, columns[:30])) or "none"
