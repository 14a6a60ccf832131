"""Convert examples to token ids. The end of the prompt is found by comparing token ids, never by measuring text."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import UserError
from ...settings import DataSettings
from ..formats.example import Dropped, Example
from ..sources.pictures import Picture
from .boundary import extend_prompt, find_boundary
from .masks import ALL, Marker, Marks, align_mask, slice_mask
from .pictures import PictureTokens, as_items
from .truncation import Ids, fit

Texts = tuple[str | None, list[str]]
"""The prompt (including the opening of the answer) and the whole conversations. If the prompt is None, it is the shared
start of the conversations.
"""


class TokenRow(NamedTuple):
    """Token ids of one row. Completions do not include the prompt.

    completions, scores, row, numbers: as in `Example`. truncated: whether the row was cut to max_seq_length.
    masks: one mask per completion: 1 for tokens that count in the loss and 0 for others, or None if all its tokens
        count. `masks` is None if all tokens of all completions count.
    certain: whether all tokens that should not count were found.
    pictures: the pictures that the picture tokens of the prompt represent.
    """

    prompt: Ids
    completions: Sequence[Ids]
    scores: Sequence[float]
    row: int
    truncated: bool
    numbers: Mapping[str, float] = {}
    masks: Sequence[Ids | None] | None = None
    certain: bool = True
    pictures: Sequence[Picture] = ()


class Encoder:
    """Turns examples into token rows with one tokenizer and one set of settings.

    tokenizer: mlx_lm's TokenizerWrapper (or a Hugging Face tokenizer) with a chat template. The tokenizer of a
        vision-language model has the attribute `pictures`, a `PictureTokens`.
    add_bos: begin with BOS if the tokenizer's own `encode` does so, for templates that omit it.
    add_ends: with `prompt_format: raw`, begin every row with BOS and end it with EOS, as TRL's CPO and ORPO do.
        Otherwise the tokenizer and the template decide, as in TRL's DPO and KTO.
    apart: make a row of each completion and truncate it separately. The end of the prompt is still found from all
        completions together. With `prompt_format: raw` it is found from each completion alone, as in TRL's KTO.
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
        encoded = self.inner.encode("a")
        self.bos = bos if bos is not None and (encoded[:1] == [bos] or self.add_ends) else None
        self.mark = Marker(self.inner, self.stops, settings)
        self.pictures: PictureTokens | None = getattr(tokenizer, "pictures", None)
        self.picture_text = self.pictures and self.pictures.text_for(tokenizer)

    def __call__(self, examples: Sequence[Example], source: str) -> Iterator[TokenRow | Dropped]:
        """Yield the rows of each example, in order. Each distinct text is encoded once.

        Raises UserError if the chat template rejects a row.
        """
        texts, ids = self._texts_and_ids(examples, source)
        for example, (prompt, conversations) in zip(examples, texts, strict=True):
            plain = not isinstance(example.prompt, list)
            start = None if prompt is None else self._begin(ids[prompt], plain)
            whole = [self._begin(ids[text], plain) for text in conversations]
            marks = self._marks(example, conversations, ids, source)
            if self.raw and self.apart:
                for one, score, mark in zip(whole, example.scores, marks, strict=True):
                    yield from self._rows(example._replace(scores=[score]), source, start, [one], [mark])
            else:
                yield from self._rows(example, source, start, whole, marks)

    def prompt(self, example: Example, source: str) -> Ids:
        """Return the tokens after which the model writes an answer: the prompt and the opening of the answer. The list
        is empty if the prompt is empty.

        Raises UserError if the chat template rejects the prompt, or the text is not valid Unicode.
        """
        [(prompt, _)], ids = self._texts_and_ids([example._replace(completions=[])], source)
        return self._begin(ids[prompt], not isinstance(example.prompt, list)) if prompt else []

    def digest(self) -> str:
        """Hash everything that determines the tokens of an example."""
        backend = getattr(self.inner, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else json.dumps(self.inner.get_vocab(), sort_keys=True)
        renderer = getattr(self.tokenizer, "_chat_template", None) or type(self.inner).apply_chat_template
        inputs = [
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
        inputs += [self.pictures.digest] if self.pictures else []
        return hashlib.sha256("\0".join(inputs).encode()).hexdigest()

    def _texts_and_ids(self, examples: Sequence[Example], source: str) -> tuple[list[Texts], dict[str, Ids]]:
        """Return the texts of each example, and text → ids."""
        texts = [self._texts(example, f"{source}, row {example.row}") for example in examples]
        try:
            return texts, self._encode(texts)
        except (TypeError, UnicodeError) as error:
            raise _text_error(examples, texts, source) from error

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
        if example.pictures:
            messages = as_items(messages, self.picture_text)
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opening, **self._template_kwargs(example)
            )
        except Exception as error:  # a template is a program, so it may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"{where}: the model's chat template rejects this row (roles: {roles}): "
                f"{str(error) or type(error).__name__}. Change or remove the row, or use a model whose template "
                "accepts such conversations."
            ) from error

    def _template_kwargs(self, example: Example) -> dict[str, Any]:
        """Return the arguments of the template other than the messages."""
        defaults = {} if self.raw else {"enable_thinking": False}
        tools = {"tools": example.tools} if example.tools else {}
        return {**defaults, **self.settings.chat_template_kwargs, **example.template_kwargs, **tools}

    def _marks(self, example: Example, texts: list[str], ids: Mapping[str, Ids], source: str) -> list[Marks]:
        """Mark, in each conversation, the tokens that count in the loss."""
        if not isinstance(example.prompt, list):
            return [ALL] * len(texts)
        start, where = example.prompt, f"{source}, row {example.row}"
        render = lambda messages, opening: self._render(messages, example, where, opening)  # noqa: E731
        kwargs = self._template_kwargs(example)
        if key := getattr(self.tokenizer, "_thinking_kwarg", None):  # as mlx_lm's wrapper does
            kwargs = {key if name == "enable_thinking" else name: value for name, value in kwargs.items()}
            kwargs.setdefault(key, self.tokenizer.has_thinking)
        return [
            self.mark([*start, *answer], len(start), text, ids[text], render, kwargs)
            for answer, text in zip(example.completions, texts, strict=True)
            if not isinstance(answer, str)
        ]

    def _encode(self, texts: Iterable[Texts]) -> dict[str, Ids]:
        """Encode each distinct text once, without special tokens. Returns text → ids."""
        distinct = list(dict.fromkeys(text for row in texts for text in _all_texts(row)))
        if not distinct:
            return {}
        from transformers import PreTrainedTokenizerBase

        if type(self.inner).encode is not PreTrainedTokenizerBase.encode:  # an overridden `encode`
            return {text: self.inner.encode(text, add_special_tokens=False) for text in distinct}
        encoded = self.inner(
            distinct,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return dict(zip(distinct, encoded["input_ids"], strict=True))

    def _begin(self, ids: Ids, plain: bool) -> Ids:
        """Add BOS at the start if it is needed and missing."""
        needs_bos = self.bos is not None and (plain or self.add_bos)
        return [self.bos, *ids] if needs_bos and ids[:1] != [self.bos] else ids  # pyright: ignore

    def _rows(
        self, example: Example, source: str, prompt: Ids | None, conversations: list[Ids], marks: list[Marks]
    ) -> Iterator[TokenRow | Dropped]:
        """Make the rows of one example.

        prompt: including the opening of the answer. conversations: prompt and completion. marks: of each conversation.
        """
        if _all_same(conversations):
            yield Dropped(example.row, _same_reason(conversations))
            return
        if prompt is None:
            conversations = [self._close(ids) for ids in conversations]
        remaining, boundary = find_boundary(prompt, conversations)
        if len(remaining) < min(len(conversations), 2):
            yield Dropped(example.row, "no completion left after the prompt")
            return
        masks = [align_mask(marks[i], conversations[i]) for i in remaining]
        if not self.raw:
            boundary = extend_prompt(boundary, [conversations[i] for i in remaining], masks)
        start = conversations[remaining[0]][:boundary] or self._opening()
        completions = [self._close(conversations[i][boundary:]) for i in remaining]
        masks = [slice_mask(mask, boundary, len(ids)) for mask, ids in zip(masks, completions, strict=True)]
        scores = [example.scores[i] for i in remaining]
        certain = all(marks[i].certain for i in remaining)
        if not start:
            yield Dropped(example.row, "empty prompt")
        elif any(mask is not None and not any(mask) for mask in masks):
            yield Dropped(example.row, "no token of the assistant in a completion")
        elif self.apart:
            for completion, score, mask in zip(completions, scores, masks, strict=True):
                yield self._row(example, source, start, [completion], [score], [mask], certain)
        else:
            yield self._row(example, source, start, completions, scores, masks, certain)

    def _row(
        self,
        example: Example,
        source: str,
        prompt: Ids,
        completions: list[Ids],
        scores: list[float],
        masks: list[Ids | None],
        certain: bool,
    ) -> TokenRow | Dropped:
        """Truncate a row so that at least one token that counts remains in each completion."""
        least, settings = max(mask.index(1) + 1 if mask else 1 for mask in masks), self.settings
        if self.pictures:
            where = f"{source}, row {example.row}"
            self.pictures.check_none(completions, where)
            prompt = self.pictures.expanded(prompt, example.pictures, where)
            if example.pictures and settings.truncation != "drop":
                settings = settings.model_copy(update={"truncation": "keep_prompt"})  # no picture is cut
        fitted = fit(prompt, completions, settings, self.inner.bos_token_id, least)
        if fitted is None:
            too_long = "prompt as long as" if settings.truncation == "keep_prompt" else "longer than"
            return Dropped(example.row, f"{too_long} max_seq_length")
        if _all_same(fitted[1]):
            after = "" if _all_same(completions) else " after truncation to max_seq_length"
            return Dropped(example.row, _same_reason(fitted[1]) + after)
        if _all_same(scores):
            return Dropped(example.row, "tie")
        fitted_masks = [slice_mask(mask, 0, len(ids)) for mask, ids in zip(masks, fitted[1], strict=True)]
        row_masks = fitted_masks if any(fitted_masks) else None
        is_whole = fitted == (prompt, completions)
        about = example.numbers, row_masks, certain, example.pictures
        return TokenRow(*fitted, scores, example.row, not is_whole, *about)

    def _opening(self) -> Ids:
        """Return the single token that replaces an empty prompt. The list is empty if the tokenizer has neither BOS nor
        EOS.
        """
        opening = self.inner.bos_token_id if self.bos is None else self.bos
        opening = self.eos if opening is None else opening
        return [] if opening is None else [opening]

    def _close(self, ids: Ids) -> Ids:
        """Add EOS at the end if no token ends the turn."""
        if self.eos is None or not self.stops.isdisjoint(ids) or (self.raw and not self.add_ends):
            return ids
        return [*ids, self.eos]


def _all_texts(texts: Texts) -> list[str]:
    prompt, conversations = texts
    return conversations if prompt is None else [prompt, *conversations]


def _all_same(values: Sequence[Any]) -> bool:
    """Return whether there are several values and all are equal."""
    return len(values) > 1 and all(value == values[0] for value in values)


def _same_reason(completions: Sequence[Any]) -> str:
    return f"{'chosen and rejected' if len(completions) == 2 else 'all completions'} are the same"


def _text_error(examples: Sequence[Example], texts: list[Texts], source: str) -> UserError:
    """Return the error for text that is not valid Unicode. It names the row."""
    for example, row in zip(examples, texts, strict=True):
        for text in _all_texts(row):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return UserError(
                    f"{source}, row {example.row}: the text contains half of a surrogate pair "
                    f"({error.object[error.start]!a}), which is not a character. Remove it from the row."
                )
    return UserError(f"{source}, rows {examples[0].row} to {examples[-1].row}: the tokenizer rejects the text.")
