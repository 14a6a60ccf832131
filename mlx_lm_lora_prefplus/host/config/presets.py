"""Published settings by name: `preset: NAME` in a config file. Values that the user sets take precedence.

The table is in `presets.toml`.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...losses import OPTIONS, loss_names


@dataclass(frozen=True)
class Preset:
    """A named set of published settings.

    name: the value of the key `preset`. mode: the train mode it belongs to.
    values: config key → value.
    source: the paper, and the file or table with the values.
    about: the training that used these settings, in one line.
    """

    name: str
    mode: str
    values: Mapping[str, Any]
    source: str
    about: str


_TABLE = tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))

PRESETS = {name: Preset(name, **entry) for name, entry in _TABLE.items()}
"""Name → preset."""


TWO_NAMES = {"simpo_gamma": "gamma_beta_ratio", "gamma_beta_ratio": "simpo_gamma"}
"""Key → another name of the same setting. Only one of the two names can be set."""


def values_beside(preset: Preset, user_values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a preset that the user's values do not replace.

    A key of the user replaces the preset's key of the same meaning. If the user chooses another loss, that loss keeps
    its own defaults, because the preset's β, margin and weights were published for the preset's loss.
    """
    dropped = {*user_values, *(TWO_NAMES[key] for key in user_values if key in TWO_NAMES)}
    loss_type = user_values.get("loss_type", user_values.get("dpo_cpo_loss_type"))
    if loss_type is not None and loss_names(loss_type) != loss_names(preset.values.get("loss_type", preset.mode)):
        table = OPTIONS[preset.mode].table
        dropped |= {"loss_type", "loss_weights"}
        dropped |= {key for row in table.values() for key in (*row.options, *row.instead)}
    return {key: value for key, value in preset.values.items() if key not in dropped}
