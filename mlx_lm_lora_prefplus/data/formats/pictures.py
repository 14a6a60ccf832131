"""Rows with pictures: refused, because the language model would be trained on answers to what it does not see."""

from ...errors import UserError
from ..sources.files import Rows

COLUMNS = ("image", "images")
"""The columns in which TRL's trainers expect pictures."""


def without_pictures(rows: Rows, source: str) -> Rows:
    """Yield the rows. Raises UserError at the first that has a picture; rows whose column is empty have none.

    source: file or hub name, for the message.
    """
    for number, row in rows:
        for column in COLUMNS:
            if row.get(column):
                raise UserError(
                    f"{source}, row {number}: column {column!r} holds a picture, and only text can be trained on: the "
                    "model would learn answers to a picture that it does not see. Leave out the rows with pictures, "
                    "or, if they can be answered without them, the column."
                )
        yield number, row
