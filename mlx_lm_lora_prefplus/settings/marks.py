"""The base class of settings, the marks of their fields, and the types that several fields share."""

import os
import unicodedata
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LARGEST = 2**31 - 1
"""Largest allowed value of a whole number. Larger values have no use and can overflow."""

Positive = Annotated[int, Field(gt=0, le=LARGEST)]


def _place(path: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        raise ValueError("must contain no control character and no half of a surrogate pair")
    return path


class Settings(BaseModel):
    """A class of config keys. The docstring below a key is its description in `--help` and in the documentation."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Join the lines of the descriptions."""
        for field in cls.model_fields.values():
            field.description = " ".join((field.description or "").split())


class Effect(Enum):
    """How a key influences the result of a run. Each field has one of these marks."""

    DECIDES = "determines the result; --resume rejects another value"
    COMPARED = "may influence the result; --resume compares its effect (rows, weights) or accepts a change"
    SHOWS = "determines what is shown and saved, but not what is trained"


class Mark:
    """A mark that the annotation of a field contains besides its type."""


OURS = Mark()
"""The host does not have this key."""

FUNCTIONS = Mark()
"""The host's functions (such as `train_dpo`) have no argument for this key. Their callers set it in `prefplus.yaml`."""

Format = Literal["paired", "unpaired", "ranked"]
"""Format of the rows of a data source. The kinds of rows that modes need have the same three names."""


class Column:
    """Marks a key that names a data column.

    formats: the formats of rows that have this column. converts: whether the column is still read when rows of these
        formats are converted to another kind.
    """

    def __init__(self, *formats: Format, converts: bool = True):
        self.formats, self.converts = formats, converts


Place = Annotated[str, AfterValidator(_place), AfterValidator(os.path.expanduser)]
"""A path or a hub name. The ~ of a path is expanded, because no shell expands it in a config file."""
