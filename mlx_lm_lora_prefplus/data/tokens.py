"""Pairs → token ids. The end of the prompt is found on the tokens themselves, never by counting text."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from mlx_lm_lora_prefplus.data.messages import shared_start
from mlx_lm_lora_prefplus.data.pairs import Dropped, Pair
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.settings import DataSettings

Ids = list[int]


class TokenRow(NamedTuple):
    """Token ids of one pair; the completions come without the prompt.

    row: row number in the source. truncated: whether anything was cut to fit max_seq_length.
    """

    prompt: Ids
    chosen: Ids
    rejected: Ids
    row: int
    truncated: bool


class Encoder:
    """Turns pairs into token rows with one tokenizer and one set of settings.

    tokenizer: mlx_lm's TokenizerWrapper (or a Hugging Face tokenizer) with a chat template.
    add_bos: whether the template leaves the BOS out, so that it must be put first when the tokenizer's own
        `encode` would put it there.
    """

    def __init__(self, tokenizer: Any, settings: DataSettings, *, add_bos: bool = False) -> None:
        self.tokenizer = tokenizer
        self.inner = getattr(tokenizer, "_tokenizer", tokenizer)
        self.settings = settings
        self.add_bos = add_bos
        self.eos = tokenizer.eos_token_id
        stops = getattr(tokenizer, "eos_token_ids", None)
        self.stops = frozenset(stops if stops else () if self.eos is None else (self.eos,))
        bos = self.inner.bos_token_id
        own = self.inner.encode("a")
        self.bos = bos if bos is not None and own[:1] == [bos] else None

    def __call__(self, pairs: Sequence[Pair], source: str) -> Iterator[TokenRow | Dropped]:
        """One result a pair, in order. Each different text is rendered and encoded once.

        Raises UserError if the chat template does not take a row.
        """
        texts = [self._texts(pair, f"{source}, row {pair.row}") for pair in pairs]
        try:
            ids = self._encode(texts)
        except (TypeError, UnicodeError) as error:
            raise _refused(pairs, texts, source) from error
        for pair, (prompt, chosen, rejected) in zip(pairs, texts, strict=True):
            plain = pair.prompt is None
            yield self._row(
                pair.row,
                None if prompt is None else self._begin(ids[prompt], plain),
                self._begin(ids[chosen], plain),
                self._begin(ids[rejected], plain),
            )

    def digest(self) -> str:
        """Changes whenever the same pair could become other tokens."""
        backend = getattr(self.inner, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else json.dumps(self.inner.get_vocab(), sort_keys=True)
        renderer = getattr(self.tokenizer, "_chat_template", None) or type(self.inner).apply_chat_template
        parts = [
            type(self.inner).__name__,
            vocabulary,
            json.dumps(getattr(self.inner, "chat_template", None), sort_keys=True),
            f"{renderer.__module__}.{getattr(renderer, '__qualname__', '')}",
            json.dumps(getattr(self.inner, "special_tokens_map", None), sort_keys=True, default=str),
            repr((self.bos, self.eos, sorted(self.stops), self.add_bos)),
            self.settings.model_dump_json(include={"max_seq_length", "truncation", "max_prompt_length"}),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _texts(self, pair: Pair, where: str) -> tuple[str | None, str, str]:
        """Prompt (with the opening of the answer), chosen and rejected conversation as text.

        The prompt is None where the shared start of the two is all the prompt there is.
        """
        if pair.prompt is None:
            assert isinstance(pair.chosen, str) and isinstance(pair.rejected, str)
            return None, pair.chosen, pair.rejected
        prompt = self._render(pair.prompt, pair, where, opening=True) if pair.prompt else None
        chosen, rejected = (
            self._render([*pair.prompt, *answer], pair, where) for answer in (pair.chosen, pair.rejected)
        )
        return prompt, chosen, rejected

    def _render(self, messages: list[Any], pair: Pair, where: str, opening: bool = False) -> str:
        tools = {"tools": pair.tools} if pair.tools else {}
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opening, enable_thinking=False, **tools
            )
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"{where}: the model's chat template does not take this row (roles: {roles}). It says: "
                f"{str(error) or type(error).__name__}. Change or remove the row, or use a model whose template "
                "takes such conversations."
            ) from error

    def _encode(self, texts: Iterable[tuple[str | None, str, str]]) -> dict[str, Ids]:
        """Text → ids without special tokens, each different text once."""
        different = list(dict.fromkeys(text for row in texts for text in row if text is not None))
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

    def _row(self, row: int, prompt: Ids | None, chosen: Ids, rejected: Ids) -> TokenRow | Dropped:
        if chosen == rejected:
            return Dropped(row, "chosen and rejected are the same")
        if prompt is None:
            chosen, rejected = self._close(chosen), self._close(rejected)
        boundary = shared_start(chosen, rejected)
        if prompt is not None:
            boundary = min(boundary, shared_start(prompt, chosen))
        start, chosen, rejected = chosen[:boundary], chosen[boundary:], rejected[boundary:]
        if not chosen or not rejected:
            return Dropped(row, "no completion left after the prompt")
        if prompt is not None:
            chosen, rejected = self._close(chosen), self._close(rejected)
        if not start:
            opening = self.bos if self.bos is not None else self.inner.bos_token_id
            opening = self.eos if opening is None else opening
            if opening is None:
                return Dropped(row, "empty prompt")
            start = [opening]
        fitted = fit(start, chosen, rejected, self.settings, self.inner.bos_token_id)
        if fitted is None:
            return Dropped(row, "longer than max_seq_length")
        if fitted[1] == fitted[2]:
            return Dropped(row, "chosen and rejected are the same")
        return TokenRow(*fitted, row, fitted != (start, chosen, rejected))

    def _close(self, ids: Ids) -> Ids:
        """With an end-of-sequence token, added only where there is none."""
        return ids if self.eos is None or not self.stops.isdisjoint(ids) else [*ids, self.eos]


def _refused(pairs: Sequence[Pair], texts: list[Any], source: str) -> UserError:
    """The error for text that is no Unicode text, naming its row."""
    for pair, row in zip(pairs, texts, strict=True):
        for text in row:
            try:
                (text or "").encode()
            except UnicodeEncodeError as error:
                return UserError(
                    f"{source}, row {pair.row}: the text holds half of a surrogate pair "
                    f"({error.object[error.start]!a}), which is no character. Remove it from the row."
                )
    return UserError(f"{source}, rows {pairs[0].row} to {pairs[-1].row}: the tokenizer refuses the text.")


def fit(
    prompt: Ids, chosen: Ids, rejected: Ids, settings: DataSettings, bos: int | None = None
) -> tuple[Ids, Ids, Ids] | None:
    """Cut a row so that the prompt and either completion have at most `max_seq_length` tokens together.

    The prompt gives way first, down to `max_prompt_length` tokens (default: half of `max_seq_length`); then
    the ends of the completions. One token of each remains whatever the settings, and a prompt that begins with
    `bos` still does where two tokens of it fit. None if the row is too long and `truncation` is "drop".
    """
    limit = settings.max_seq_length
    longer = max(len(chosen), len(rejected))
    if len(prompt) + longer <= limit:
        return prompt, chosen, rejected
    if settings.truncation == "drop":
        return None
    floor = min(len(prompt), settings.max_prompt_length or limit // 2)
    keep = max(1, min(max(limit - longer, floor), limit - 1))
    room = max(1, limit - keep)
    kept = prompt[:keep] if settings.truncation == "keep_start" else prompt[-keep:]
    if prompt[0] == bos and keep > 1:
        kept = [bos, *kept[1:]]
    return kept, chosen[:room], rejected[:room]
