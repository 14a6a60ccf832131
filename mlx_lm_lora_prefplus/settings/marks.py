"""What a field of the settings says about its key, and the types that several fields share."""

import os
import unicodedata
from enum import Enum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

LARGEST = 2**31 - 1
"""Of whole numbers: more has no use, and does not fit where some of them go."""

Positive = Annotated[int, Field(gt=0, le=LARGEST)]


def _place(path: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        raise ValueError("must hold no control character and no half of a surrogate pair")
    return path


class Effect(Enum):
    """What a key does to the result of a run. Each field says one."""

    DECIDES = "decides the result; --resume refuses another value"
    COMPARED = "may decide the result; --resume compares what comes of it (rows, weights) or lets it change"
    SHOWS = "decides what is shown and kept, and not what is trained"


class Mark:
    """A word about a field, beside its type."""


OURS = Mark()
"""The host does not have this key."""

FUNCTIONS = Mark()
"""The host's functions (such as `train_dpo`) have no argument for it: prefplus.yaml may set it for them."""

Format = Literal["paired", "unpaired", "ranked"]
"""How the rows of a source are written; the kinds of rows that modes read have the same names."""


class Column:
    """Stands at a key that names a data column.

    formats: of which rows it is a column. converts: whether it is read where examples of another kind are made of them.
    """

    def __init__(self, *formats: Format, converts: bool = True):
        self.formats, self.converts = formats, converts


Place = Annotated[str, AfterValidator(_place), AfterValidator(os.path.expanduser)]
"""A path or hub name. No shell expands the ~ of a config file, so it is done here."""
