"""The tokens that represent pictures in a prompt, as the processor of a vision-language model makes them."""

import re
from collections.abc import Sequence
from typing import Any

from ...errors import UserError
from ..formats.messages import Messages
from ..sources.pictures import MARK, Picture, open_picture
from .truncation import Ids


class PictureTokens:
    """Inserts the tokens of pictures into prompts.

    processor: mlx-vlm's. token: the token for each part of a picture. digest: of everything that determines the tokens
        of a picture.
    """

    def __init__(self, processor: Any, token: int, digest: str) -> None:
        self.processor, self.token, self.digest = processor, token, digest
        self.alone = list(processor.tokenizer(processor.image_token)["input_ids"])
        self._last: tuple[Sequence[Picture], list[Ids]] = ((), [])

    def expanded(self, prompt: Ids, pictures: Sequence[Picture], where: str) -> Ids:
        """Return a prompt with all tokens of its pictures. They replace the single token that the chat template writes
        for each picture.

        Raises UserError if the number of these tokens differs from the number of pictures, or a picture cannot be read.
        """
        if (count := prompt.count(self.token)) != len(pictures):
            raise UserError(
                f"{where}: the model's chat template wrote {count} picture tokens for {len(pictures)} pictures. Remove "
                f"{self.processor.image_token} from the text, or use a model whose template supports pictures."
            )
        if self._last[0] is not pictures:  # an example may give several rows
            self._last = pictures, [self._ids(picture, where) for picture in pictures]
        remaining = iter(self._last[1])
        return [one for token in prompt for one in (next(remaining) if token == self.token else [token])]

    def check_none(self, completions: Sequence[Ids], where: str) -> None:
        """Raise a UserError if a completion contains the token of a picture."""
        if any(self.token in completion for completion in completions):
            raise UserError(
                f"{where}: a completion contains {self.processor.image_token}, the token of a picture. Remove it."
            )

    def text_for(self, tokenizer: Any) -> str | None:
        """Return the text that represents a picture; None if the chat template writes it for an item `image` of the
        content.
        """
        try:
            trial: Any = as_items([{"role": "user", "content": f"{MARK}a"}])
            text = tokenizer.apply_chat_template(trial, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template is a program, so it may raise anything
            return self.processor.image_token
        return None if text.count(self.processor.image_token) == 1 else self.processor.image_token

    def shortened(self, text: str) -> str:
        """Return a decoded prompt in which the repeated tokens of a picture are written once, with their number."""
        token = self.processor.image_token
        return re.sub(
            rf"{re.escape(token)}(?: ?{re.escape(token)})+", lambda run: f"{token}×{run[0].count(token)}", text
        )

    def _ids(self, picture: Picture, where: str) -> Ids:
        """Return the tokens of a picture, without the tokens that the tokenizer adds around every text."""
        image = open_picture(picture, where)
        try:
            ids = self.processor(text=[self.processor.image_token], images=[image])["input_ids"]
        except Exception as error:  # processors are programs of many authors, so they may raise anything
            raise UserError(
                f"{where}: the model's processor rejects the picture {picture.path or 'in the row'} ({image.width}×"
                f"{image.height} pixels): {str(error).rstrip('.') or type(error).__name__}. Change its size, or remove "
                "the row."
            ) from error
        before = self.alone.index(self.token)
        return [int(token) for token in ids.tolist()[0]][before : before + 1 - len(self.alone) or None]


def as_items(messages: Messages, as_text: str | None = None) -> Messages:
    """Return messages whose content has an item for each picture, as chat templates of such models expect.

    as_text: text to write instead of the item, for templates that only accept text.
    """
    return [
        {**message, "content": message["content"].replace(MARK, as_text) if as_text else _items(message["content"])}
        if MARK in message["content"]
        else message
        for message in messages
    ]


def _items(content: str) -> list[dict[str, str]]:
    items: list[dict[str, str]] = []
    for place, text in enumerate(content.split(MARK)):
        items += [{"type": "image"}] if place else []
        items += [{"type": "text", "text": text}] if text else []
    return items
