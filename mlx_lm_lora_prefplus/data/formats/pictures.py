"""Reject rows with pictures. The language model cannot see them, so it would learn answers to unknown content."""

from ...errors import UserError
from ..sources.files import Rows

COLUMNS = ("image", "images")
"""The columns in which TRL's trainers expect pictures."""


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
                    "they can be answered without the pictures, remove the column instead."
                )
        yield number, row
