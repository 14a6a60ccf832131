"""Examples → token ids. The end of the prompt is found on the tokens themselves, never by counting text."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import UserError
from ...settings import DataSettings
from ..formats.example import Dropped, Example
from ..formats.messages import shared_start
from .masks import ALL, Marker, Marks
from .truncation import Ids, fit

Texts = tuple[str | None, list[str]]
"""Prompt (with the opening of the answer) and each whole conversation. The prompt is None where the shared start of the
conversations is all the prompt there is."""


class TokenRow(NamedTuple):
    """Token ids of one row; the completions come without the prompt.

    completions, scores, row, numbers: as in `Example`. truncated: whether anything was cut to fit max_seq_length.
    masks: which tokens of each completion count, 1 or 0 each; None in place of one, or of all, whose tokens all count.
    certain: whether the tokens that should not count could be found.
    """

    prompt: Ids
    completions: Sequence[Ids]
    scores: Sequence[float]
    row: int
    truncated: bool
    numbers: Mapping[str, float] = {}
    masks: Sequence[Ids | None] | None = None
    certain: bool = True


class Encoder:
    """Turns examples into token rows with one tokenizer and one set of settings.

    tokenizer: mlx_lm's TokenizerWrapper (or a Hugging Face tokenizer) with a chat template.
    add_bos: whether the template leaves the BOS out, so that it must be put first when the tokenizer's own
        `encode` would put it there.
    add_ends: with `prompt_format: raw`, put BOS first and EOS last in every row, as TRL's CPO and ORPO do. Otherwise
        these are left to the tokenizer and the template, as in its DPO and KTO.
    apart: make a row of each completion, cut alone. Where the prompt ends is still found on all of them; with
        `prompt_format: raw` on each alone, as in TRL's KTO.
    """

    def __init__(
        self,
        tokenizer: Any,
        settings: DataSettings,
        *,
        add_bos: bool = False,
        add_ends: bool = False,
        apart: bool = False,
    ) -> None:
        from transformers import PreTrainedTokenizerBase

        self.tokenizer = tokenizer
        self.inner = tokenizer if issubclass(type(tokenizer), PreTrainedTokenizerBase) else tokenizer._tokenizer
        self.settings = settings
        self.raw = settings.prompt_format == "raw"
        self.add_ends = self.raw and add_ends
        self.add_bos = add_bos or self.add_ends
        self.apart = apart
        self.eos = tokenizer.eos_token_id
        stops = getattr(tokenizer, "eos_token_ids", None)
        stops = [stops] if isinstance(stops, int) else stops
        self.stops = frozenset(stops or ([] if self.eos is None else [self.eos]))
        bos = self.inner.bos_token_id
        own = self.inner.encode("a")
        self.bos = bos if bos is not None and (own[:1] == [bos] or self.add_ends) else None
        self.mark = Marker(self.inner, self.stops, settings)

    def __call__(self, examples: Sequence[Example], source: str) -> Iterator[TokenRow | Dropped]:
        """The rows of each example, in order. Each different text is encoded once.

        Raises UserError if the chat template does not take a row.
        """
        texts = [self._texts(example, f"{source}, row {example.row}") for example in examples]
        try:
            ids = self._encode(texts)
        except (TypeError, UnicodeError) as error:
            raise _refused(examples, texts, source) from error
        for example, (prompt, conversations) in zip(examples, texts, strict=True):
            plain = not isinstance(example.prompt, list)
            start = None if prompt is None else self._begin(ids[prompt], plain)
            whole = [self._begin(ids[text], plain) for text in conversations]
            marks = self._marks(example, conversations, ids, source)
            if self.raw and self.apart:
                for one, score, mark in zip(whole, example.scores, marks, strict=True):
                    yield from self._rows(example._replace(scores=[score]), start, [one], [mark])
            else:
                yield from self._rows(example, start, whole, marks)

    def digest(self) -> str:
        """Changes whenever the same example could become other tokens."""
        backend = getattr(self.inner, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else json.dumps(self.inner.get_vocab(), sort_keys=True)
        renderer = getattr(self.tokenizer, "_chat_template", None) or type(self.inner).apply_chat_template
        parts = [
            type(self.inner).__name__,
            vocabulary,
            json.dumps(getattr(self.inner, "chat_template", None), sort_keys=True),
            f"{renderer.__module__}.{getattr(renderer, '__qualname__', '')}",
            json.dumps(getattr(self.inner, "special_tokens_map", None), sort_keys=True, default=str),
            repr((self.bos, self.eos, sorted(self.stops), self.add_bos, self.add_ends)),
            self.settings.model_dump_json(
                include={"prompt_format", "max_seq_length", "truncation", "max_prompt_length"}
                | {"assistant_only_loss", "mask_thinking", "chat_template_kwargs"}
            ),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _texts(self, example: Example, where: str) -> Texts:
        if example.prompt is None:
            return None, [text for text in example.completions if isinstance(text, str)]
        if isinstance(example.prompt, str):
            ends = self.inner.eos_token or ""
            return example.prompt, [
                example.prompt + text.removesuffix(ends) + ends for text in example.completions if isinstance(text, str)
            ]
        prompt = self._render(example.prompt, example, where, opening=True) if example.prompt else None
        return prompt, [self._render([*example.prompt, *answer], example, where) for answer in example.completions]

    def _render(self, messages: list[Any], example: Example, where: str, opening: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opening, **self._given(example)
            )
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"{where}: the model's chat template does not take this row (roles: {roles}). It says: "
                f"{str(error) or type(error).__name__}. Change or remove the row, or use a model whose template "
                "takes such conversations."
            ) from error

    def _given(self, example: Example) -> dict[str, Any]:
        """What the template is given besides the messages."""
        usual = {} if self.raw else {"enable_thinking": False}
        tools = {"tools": example.tools} if example.tools else {}
        return {**usual, **self.settings.chat_template_kwargs, **example.template_kwargs, **tools}

    def _marks(self, example: Example, texts: list[str], ids: Mapping[str, Ids], source: str) -> list[Marks]:
        """Which tokens of each conversation count."""
        if not isinstance(example.prompt, list):
            return [ALL] * len(texts)
        start, where = example.prompt, f"{source}, row {example.row}"
        render = lambda messages, opening: self._render(messages, example, where, opening)  # noqa: E731
        given = self._given(example)
        if key := getattr(self.tokenizer, "_thinking_kwarg", None):  # as mlx_lm's wrapper does
            given = {key if name == "enable_thinking" else name: value for name, value in given.items()}
            given.setdefault(key, self.tokenizer.has_thinking)
        return [
            self.mark([*start, *answer], len(start), text, ids[text], render, given)
            for answer, text in zip(example.completions, texts, strict=True)
            if not isinstance(answer, str)
        ]

    def _encode(self, texts: Iterable[Texts]) -> dict[str, Ids]:
        """Text → ids without special tokens, each different text once."""
        different = list(dict.fromkeys(text for row in texts for text in _all(row)))
        if not different:
            return {}
        from transformers import PreTrainedTokenizerBase

        if type(self.inner).encode is not PreTrainedTokenizerBase.encode:  # it does something of its own
            return {text: self.inner.encode(text, add_special_tokens=False) for text in different}
        encoded = self.inner(
            different,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return dict(zip(different, encoded["input_ids"], strict=True))

    def _begin(self, ids: Ids, plain: bool) -> Ids:
        """With one BOS at the start where there should be one and is none."""
        wanted = self.bos is not None and (plain or self.add_bos)
        return [self.bos, *ids] if wanted and ids[:1] != [self.bos] else ids  # pyright: ignore

    def _rows(
        self, example: Example, prompt: Ids | None, conversations: list[Ids], marks: list[Marks]
    ) -> Iterator[TokenRow | Dropped]:
        """prompt: with the opening of the answer, to see where it ends. conversations: whole. marks: of each."""
        if _all_same(conversations):
            yield Dropped(example.row, _same(conversations))
            return
        if prompt is None:
            conversations = [self._close(ids) for ids in conversations]
        kept, boundary = _completed(prompt, conversations)
        if len(kept) < min(len(conversations), 2):
            yield Dropped(example.row, "no completion left after the prompt")
            return
        masks = [_of_whole(marks[i], conversations[i]) for i in kept]
        if not self.raw:
            boundary = _to_the_first_counted(boundary, [conversations[i] for i in kept], masks)
        start = conversations[kept[0]][:boundary] or self._opening()
        completions = [self._close(conversations[i][boundary:]) for i in kept]
        masks = [_cut(mask, boundary, len(ids)) for mask, ids in zip(masks, completions, strict=True)]
        scores = [example.scores[i] for i in kept]
        certain = all(marks[i].certain for i in kept)
        if not start:
            yield Dropped(example.row, "empty prompt")
        elif any(mask is not None and not any(mask) for mask in masks):
            yield Dropped(example.row, "no token of the assistant in a completion")
        elif self.apart:
            for completion, score, mask in zip(completions, scores, masks, strict=True):
                yield self._row(example, start, [completion], [score], [mask], certain)
        else:
            yield self._row(example, start, completions, scores, masks, certain)

    def _row(
        self,
        example: Example,
        prompt: Ids,
        completions: list[Ids],
        scores: list[float],
        masks: list[Ids | None],
        certain: bool,
    ) -> TokenRow | Dropped:
        """A row cut to its length, so that a token that counts remains of each completion."""
        least = max(mask.index(1) + 1 if mask else 1 for mask in masks)
        fitted = fit(prompt, completions, self.settings, self.inner.bos_token_id, least)
        if fitted is None:
            too_long = "prompt as long as" if self.settings.truncation == "keep_prompt" else "longer than"
            return Dropped(example.row, f"{too_long} max_seq_length")
        if _all_same(fitted[1]):
            return Dropped(example.row, _same(fitted[1]))
        if _all_same(scores):
            return Dropped(example.row, "tie")
        cut = [_cut(mask, 0, len(ids)) for mask, ids in zip(masks, fitted[1], strict=True)]
        kept = cut if any(cut) else None
        whole = fitted == (prompt, completions)
        return TokenRow(*fitted, scores, example.row, not whole, example.numbers, kept, certain)

    def _opening(self) -> Ids:
        """One token to begin with where there is no prompt; none if the tokenizer has none for it."""
        opening = self.inner.bos_token_id if self.bos is None else self.bos
        opening = self.eos if opening is None else opening
        return [] if opening is None else [opening]

    def _close(self, ids: Ids) -> Ids:
        """With an end-of-sequence token, added only where there is none."""
        if self.eos is None or not self.stops.isdisjoint(ids) or (self.raw and not self.add_ends):
            return ids
        return [*ids, self.eos]


def _completed(prompt: Ids | None, conversations: list[Ids]) -> tuple[list[int], int]:
    """Which conversations go on after the prompt, and where it ends: where any two of them or the prompt part.

    One that ends with the prompt is left out, and the end is looked for anew among the others.
    """
    kept = list(range(len(conversations)))
    while kept:
        first, *others = (conversations[i] for i in kept)
        ends = [shared_start(first, other) for other in others]
        boundary = min([*ends, len(first) if prompt is None else shared_start(prompt, first)])
        longer = [i for i in kept if len(conversations[i]) > boundary]
        if longer == kept:
            return kept, boundary
        kept = longer
    return [], 0


def _of_whole(marks: Marks, ids: Ids) -> Ids | None:
    """The mask of a conversation that may have got a BOS since; None where all counts."""
    if marks.counted is None:
        return None
    return [0] * (len(ids) - len(marks.counted)) + marks.counted.astype(int).tolist()


def _cut(mask: Ids | None, start: int, length: int) -> Ids | None:
    """So many marks from `start` on, an appended end of sequence among them; None where all are 1."""
    if mask is None:
        return None
    part = mask[start : start + length]
    part += [1] * (length - len(part))
    return None if all(part) else part


def _to_the_first_counted(boundary: int, conversations: list[Ids], masks: list[Ids | None]) -> int:
    """Where the prompt ends that takes in what all conversations share before a token counts in any."""
    firsts = [boundary if mask is None or 1 not in mask[boundary:] else mask.index(1, boundary) for mask in masks]
    first, *others = (ids[: min(firsts)] for ids in conversations)
    return max(boundary, min([len(first), *(shared_start(first, other) for other in others)]))


def _all(texts: Texts) -> list[str]:
    prompt, conversations = texts
    return conversations if prompt is None else [prompt, *conversations]


def _all_same(values: Sequence[Any]) -> bool:
    """Whether there are several, and no two of them differ."""
    return len(values) > 1 and all(value == values[0] for value in values)


def _same(completions: Sequence[Any]) -> str:
    return f"{'chosen and rejected' if len(completions) == 2 else 'all completions'} are the same"


def _refused(examples: Sequence[Example], texts: list[Texts], source: str) -> UserError:
    """The error for text that is no Unicode text, naming its row."""
    for example, row in zip(examples, texts, strict=True):
        for text in _all(row):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return UserError(
                    f"{source}, row {example.row}: the text holds half of a surrogate pair "
                    f"({error.object[error.start]!a}), which is no character. Remove it from the row."
                )
    return UserError(f"{source}, rows {examples[0].row} to {examples[-1].row}: the tokenizer refuses the text.")
