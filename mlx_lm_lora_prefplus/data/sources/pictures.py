"""Read the pictures of rows, from columns and messages, in the formats of TRL, LLaMA-Factory and `datasets`."""

import base64
import binascii
import io
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from ...errors import UserError
from .files import Rows

COLUMNS = ("image", "images")
"""The columns in which TRL's trainers expect pictures."""

MARK = "\ufffc"
"""Represents a picture in the text of a message (Unicode: OBJECT REPLACEMENT CHARACTER)."""

PLACEHOLDER = "<image>"
"""Text that LLaMA-Factory and ms-swift write in place of a picture."""

KEY = "_pictures"
"""The key of a message that contains its pictures until `take_pictures` reads them."""

ITEMS = ("image", "image_url")
"""Types of the items of a message's content that are pictures."""


class Picture(NamedTuple):
    """A picture as it is stored with a row: the path of a file, or its content."""

    path: str | None = None
    content: bytes | None = None


def without_pictures(rows: Rows, source: str) -> Rows:
    """Yield the rows. Raises UserError at the first row with a picture. An empty picture column is accepted.

    source: file or hub name, for the message.
    """
    for number, row in rows:
        for column in COLUMNS:
            if row.get(column):
                raise UserError(
                    f"{source}, row {number}: column {column!r} contains a picture, but training uses text only: the "
                    "model would learn answers to a picture that it does not see. Remove the rows with pictures. If "
                    "they can be answered without the pictures, remove the column instead. A vision-language model is "
                    "trained with pictures if one of the first 100 rows has one."
                )
        yield number, row


def shows_pictures(rows: Rows, count: int) -> bool:
    """Return whether one of the first rows has a picture."""
    return any(_has_picture(value, column) for _, row in islice(rows, count) for column, value in row.items())


def _has_picture(value: Any, column: str = "") -> bool:
    if isinstance(value, list):
        return (column in COLUMNS and bool(value)) or any(map(_has_picture, value))
    if isinstance(value, dict):
        return column in COLUMNS or value.get("type") in ITEMS or any(map(_has_picture, value.values()))
    return column in COLUMNS and bool(value)


def content_of(items: Sequence[Any]) -> tuple[str, list[Any]] | None:
    """Return the text of a message's content list, with a `MARK` for each picture, and the pictures; None for other
    items.

    The value of a picture that is in a column is None here.
    """
    texts, pictures = [], []
    for item in items:
        kind = item.get("type") if isinstance(item, dict) else None
        if isinstance(item, dict) and kind in ITEMS:
            value = next((item[key] for key in ("image", "image_url", "path", "url") if item.get(key)), None)
            pictures.append(value.get("url") if kind == "image_url" and isinstance(value, dict) else value)
        text = MARK if kind in ITEMS else item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts), pictures


def column_of(row: Mapping[str, Any]) -> str | None:
    """Return the column that contains the row's pictures; None if it has none. An empty column is not
    recorded as read.
    """
    return next((name for name in COLUMNS if dict.get(row, name)), None)  # pyright: ignore[reportArgumentType]


def check_placed(row: Mapping[str, Any], where: str) -> None:
    """Raise a UserError for a row with pictures but without a chat template, which would write their tokens."""
    if column := column_of(row):
        raise UserError(
            f"{where}: column {column!r} contains a picture, but only a chat template can put pictures in a prompt. "
            "Give a prompt column beside chosen and rejected, or messages, and remove prompt_format: raw."
        )


def take_pictures(messages: list[dict[str, Any]], row: Mapping[str, Any], where: str) -> tuple[Any, list[Picture]]:
    """Return the messages of a prompt with a `MARK` for each picture, and the pictures in the order of the marks.

    The pictures of a column fill the empty places in the messages: items without a value, and `PLACEHOLDER`. If there
    are none, the pictures are put at the start of the first user message.

    Raises:
        UserError: The numbers of places and pictures differ, a value is not a picture, or a text contains `MARK`.
    """
    column = column_of(row)
    values = [] if column is None else row[column]
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    if not values and not any(message.get(KEY) or PLACEHOLDER in message["content"] for message in messages):
        return messages, []
    messages = [{**message} for message in messages]
    given = [value for message in messages for value in _marked(message, where)]
    if values and None not in given:
        first = next((message for message in messages if message["role"] == "user"), messages[0])
        first["content"] = MARK * len(values) + first["content"]
        first[KEY] = [None] * len(values) + first[KEY]
        given = [value for message in messages for value in message[KEY]]
    if (count := given.count(None)) != len(values):
        raise UserError(
            f"{where}: the messages have places for {count} pictures, but column {column or 'images'!r} contains "
            f"{len(values)}. Give as many pictures as there are places. A place is an item of type image without a "
            f"picture, or {PLACEHOLDER} in the text."
        )
    remaining = iter(values)
    filled = [next(remaining) if value is None else value for value in given]
    for message in messages:
        del message[KEY]
    return messages, [_picture(value, where, column or "messages") for value in filled]


def _marked(message: dict[str, Any], where: str) -> list[Any]:
    """Replace each `PLACEHOLDER` in a message by a `MARK`. Returns its pictures, None for those of the column."""
    text, own = message["content"], message.get(KEY, ())
    if text.count(MARK) != len(own):
        raise UserError(
            f"{where}: the text of a row with pictures contains the character U+FFFC, which represents a picture. "
            f"Write {PLACEHOLDER} where a picture of the column belongs, or remove the character."
        )
    remaining = iter(own)
    found = re.findall(f"{MARK}|{PLACEHOLDER}", text)
    message |= {
        "content": text.replace(PLACEHOLDER, MARK),
        KEY: [next(remaining) if f == MARK else None for f in found],
    }
    return message[KEY]


def _picture(value: Any, where: str, column: str) -> Picture:
    if isinstance(value, dict) and (value.get("bytes") or value.get("path")):
        return Picture(None, value["bytes"]) if value.get("bytes") else _picture(value["path"], where, column)
    if isinstance(value, bytes):
        return Picture(None, value)
    if isinstance(value, str) and value.startswith("data:"):
        try:
            return Picture(None, base64.b64decode("".join(value.partition(",")[2].split()), validate=True))
        except binascii.Error as error:
            raise UserError(f"{where}, column {column!r}: the picture is not valid base64 ({error}).") from error
    if isinstance(value, str) and value.startswith("file://"):
        return Picture(unquote(value.removeprefix("file://")))
    if isinstance(value, str) and "://" in value:
        raise UserError(
            f"{where}, column {column!r}: {_shortened(value)} is a URL, but pictures are only read from this machine. "
            "Download them and give their paths."
        )
    if isinstance(value, str):
        return Picture(value)
    if save := getattr(value, "save", None):  # Pillow
        content = io.BytesIO()
        save(content, "PNG")
        return Picture(None, content.getvalue())
    raise UserError(
        f"{where}, column {column!r}: found {value!r:.60}, expected a picture: a path, bytes, or an object with bytes "
        "or path."
    )


def located(picture: Picture, folder: Path | None, where: str) -> Picture:
    """Return the picture with its absolute path. folder: the start of relative paths. UserError if the file does not
    exist.
    """
    if picture.path is None:
        return picture
    path = Path(picture.path)
    try:
        path = path.expanduser() if folder is None else folder / path.expanduser()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError):  # no path, such as base64
        found = False
    if not found:
        beside = f" in {folder}" if folder is not None and not path.is_relative_to("/") else ""
        raise UserError(
            f"{where}: there is no picture {_shortened(picture.path)}{beside}. Paths are relative to the file with the "
            "rows. Base64 must begin with data:image/png;base64,"
        )
    return Picture(str(path.absolute()))


def _shortened(text: str) -> str:
    """Return a text with at most 80 characters, of its start and its end."""
    return text if len(text) <= 80 else f"{text[:49]}…{text[-30:]}"


def read_content(picture: Picture) -> bytes:
    """Return the content of a picture's file. UserError if it cannot be read."""
    if picture.content is not None:
        return picture.content
    assert picture.path is not None
    try:
        return Path(picture.path).read_bytes()
    except OSError as error:
        raise UserError(f"The picture {picture.path} cannot be read ({error.strerror}). Restore it.") from error


def open_picture(picture: Picture, where: str = "") -> Any:
    """Return the picture as a Pillow image in RGB, rotated by its EXIF data. where: file and row. UserError
    if damaged.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    content = read_content(picture)
    try:
        return _eight_bits(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))).convert("RGB")
    except Exception as error:  # the readers of some formats raise any error if a file is damaged
        name = picture.path or "in the row"
        reason = re.sub(r"<_io.BytesIO[^>]*>", "it", str(error).rstrip(".")) or type(error).__name__
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else reason
        raise UserError(f"{where}{': ' if where else ''}the picture {name} cannot be read: {reason}.") from error


def _eight_bits(image: Any) -> Any:
    """Return a Pillow image whose grey values, if they have 16 bits, are scaled to 8. Pillow's own conversion clips
    them. ValueError for floats and for values out of 16 bits.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its values are floats, whose range is unknown. Save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its values do not fit in 16 bits. Save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
