"""The settings of a run, checked when they are read, and lists of the keys whose fields have a certain mark."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from .data import RESERVED, DataSettings
from .marks import FUNCTIONS, LARGEST, OURS, Column, Effect
from .run import Optimizer, RunSettings

__all__ = [
    "COLUMNS",
    "COLUMNS_OF_OTHERS",
    "COMPANION_KEYS",
    "FIELDS",
    "FUNCTIONS",
    "GROUPS",
    "LARGEST",
    "OURS",
    "OWN_KEYS",
    "RESERVED",
    "Column",
    "DataSettings",
    "Effect",
    "Optimizer",
    "RunSettings",
    "keys_with",
    "own_fields",
]

FIELDS: Mapping[str, FieldInfo] = {**DataSettings.model_fields, **RunSettings.model_fields}
"""Key → its pydantic field, for all keys of `DataSettings` and `RunSettings`."""


TITLES = {
    "model": "Model and adapters",
    "data": "Data",
    "train": "Training",
    "engine": "Memory and speed",
    "steps_per_report": "Reports and evaluation",
    "adapter_path": "Saving, resuming, stopping",
    "qat_enable": "Quantisation-aware training",
}
"""The first key of each group → the title of the group in `--help` and in the documentation."""


def _groups() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {title: [] for title in TITLES.values()}
    title = ""
    for key in FIELDS:
        title = TITLES.get(key, title)
        groups[title].append(key)
    return groups


GROUPS: Mapping[str, Sequence[str]] = _groups()
"""Title of a group → its keys, in the order of their fields."""


def keys_with(mark: object) -> tuple[str, ...]:
    """Return the keys whose field has a mark: `OURS`, `FUNCTIONS`, or an `Effect`."""
    return tuple(key for key, field in FIELDS.items() if any(one is mark for one in field.metadata))


COLUMNS: Mapping[str, Column] = {
    key: mark for key, field in FIELDS.items() for mark in field.metadata if isinstance(mark, Column)
}
"""Keys that name data columns. They can be set for the whole run and in each entry of `hf_dataset`."""

COLUMNS_OF_OTHERS = ("text_feature", "chat_feature", "type_feature", "answer_feature")
"""Keys of columns that only the host's modes read. In this package's modes they are accepted but have no effect."""

OWN_KEYS = keys_with(OURS)
"""Keys that the host does not have. Each becomes a flag of this package's modes."""


def own_fields() -> Mapping[str, Any]:
    """The pydantic field of each key in `OWN_KEYS`."""
    return {key: FIELDS[key] for key in OWN_KEYS}


COMPANION_KEYS = ("pairs", "rounds", "round_reference")
"""Config keys that only the commands `mlx_lm_lora.prefplus pairs` and `rounds` read."""
