"""Resolve the settings of a run: command line > config file > preset > trainer default > host default.

The host reads a key from the config file only if argparse left it None, and 24 of its keys are never None. Here every
key is looked up in the order above, so a value in the file takes effect unless the command line has the same key.
"""

import dataclasses
import os
from collections import ChainMap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ...errors import UserError
from ...losses import LossOptions, borrowed_defaults
from ...plugin.manager import Registry
from ...plugin.protocol import RowKind, Trainer
from ...settings import (
    COLUMNS_OF_OTHERS,
    COMPANION_KEYS,
    OWN_KEYS,
    DataSettings,
    Effect,
    RunSettings,
    keys_with,
    own_fields,
)
from ..originals import originals_of
from .checks.nested import check_nested
from .checks.problems import Joined, Problems, check_losses, check_streaming, checked, join_loss_names
from .flags import owners
from .names import near, nearest
from .option_fields import option_fields
from .parsers import actions
from .presets import PRESETS, TWO_NAMES, values_beside
from .yaml_file import read_config

COMMAND_LINE = "command line"
TRAINER_DEFAULT = "trainer default"
HOST_DEFAULT = "host default"

WITHOUT_EFFECT_ON_RESULTS = {*keys_with(Effect.SHOWS), "config"}
"""Keys that change what is printed and saved, but not what is trained. A misspelled key that resembles one of these
does not stop a run.
"""


class Resolved(NamedTuple):
    """All settings of a run, checked.

    trainer, provider: the trainer of the mode and its package.
    settings, data, options: the checked values. `options` is an instance of `trainer.options`.
    values: key → value, including the host's keys, for the host's own functions.
    sources: key → "command line", "config FILE", "preset NAME", "trainer default" or "host default".
    notes: sentences to print before the run.
    misspelt: the notes that suggest an existing key for an unknown key.
    """

    trainer: Trainer
    provider: str
    settings: RunSettings
    data: DataSettings
    options: Any
    values: dict[str, Any]
    sources: dict[str, str]
    notes: tuple[str, ...]
    misspelt: tuple[str, ...] = ()

    @property
    def needs_reference(self) -> bool:
        """Return whether the loss compares the policy with a reference."""
        return self.trainer.needs_reference(self.options)

    @property
    def kind(self) -> RowKind:
        """Return the kind of rows that the mode needs with these options."""
        return self.trainer.rows_of(self.options)

    def set_by_user(self, key: str) -> bool:
        """Return whether the user, or the preset that the user chose, set this key."""
        return self.sources.get(key) not in (None, HOST_DEFAULT, TRAINER_DEFAULT)


class Level(NamedTuple):
    """One source of values, with its name in messages."""

    source: str
    values: dict[str, Any]


def resolve(typed: Mapping[str, Any], registry: Registry, *, read_file: bool = True) -> Resolved:
    """Resolve and check all settings of a run in one of the registry's modes.

    Args:
        typed: the values from the command line or from a Python caller. None counts as not set.
        registry: the installed modes.
        read_file: whether to read the config file that `typed` names. The host's `run` does not.

    Raises:
        UserError: Settings are wrong (one error lists all problems), or two packages provide the mode.
    """
    import mlx_lm_lora.train as host

    user_levels = [Level(COMMAND_LINE, _set_values(typed))]
    path = user_levels[0].values.get("config")
    if path and read_file:
        user_levels.append(Level(f"config {path}", read_config(path, host.yaml_loader)))
    preset = _preset(user_levels)
    levels = [*user_levels, *([preset] if preset else [])]
    mode = ChainMap(*(level.values for level in levels)).get("train_mode", host.CONFIG_DEFAULTS["train_mode"])
    if not isinstance(mode, str) or mode not in registry:
        raise UserError(
            f"train_mode: {mode!r:.80} is not a mode of an installed plugin. Choose from: {', '.join(registry)}."
        )
    trainer, provider = registry[mode]
    trainer_level, host_level = _trainer_defaults(trainer), _host_defaults(host)
    problems = Problems()
    joined, notes = _join([*levels, trainer_level, host_level], len(user_levels), trainer, problems)
    keys = {*trainer_level.values, *host_level.values, *COLUMNS_OF_OTHERS, *COMPANION_KEYS}
    unknown = [_unknown_keys(level, keys, mode, registry, joined.values, problems) for level in user_levels]
    misspelt = [note for _, of_level in unknown for note in of_level]
    notes += [note for of_level, _ in unknown for note in of_level] + misspelt
    notes += [
        f"{key} ({level.source}) is for mlx_lm_lora.prefplus pairs and rounds. Training does not use it."
        for level in user_levels
        for key in COMPANION_KEYS
        if key in level.values
    ]
    if idle := _idle_keys(user_levels, {*trainer_level.values, *COLUMNS_OF_OTHERS}, host_level):
        notes.append(f"not used in mode {mode}: {', '.join(sorted(idle))} (of mlx-lm-lora)")

    check_nested(joined)
    notes += check_losses(trainer, joined)
    settings, data, options = (checked(kind, joined) for kind in (RunSettings, DataSettings, trainer.options))
    if getattr(options, "reference_moves", False) and joined.values["reference_model_path"]:
        key = "sync_ref_model" if getattr(options, "sync_ref_model", False) else "bema_for_ref_model"
        what = f"cannot be combined with {key}, whose reference starts from the model itself. Remove one of them"
        joined.add_problem("reference_model_path", what)
    check_streaming(trainer, settings, data, options, joined)
    problems.raise_if_any()
    if isinstance(options, LossOptions):
        unset = [key for key in vars(options) if joined.values.get(key) is None]
        notes += borrowed_defaults(options, [key for key in unset if TWO_NAMES.get(key, key) in unset])
    for model in (settings, data):
        joined.values.update({key: getattr(model, key) for key in type(model).model_fields})
    joined.values.update({field.name: getattr(options, field.name) for field in dataclasses.fields(options)})
    return Resolved(
        trainer, provider, settings, data, options, joined.values, joined.sources, tuple(notes), tuple(misspelt)
    )


def _join(levels: list[Level], from_user: int, trainer: Trainer, problems: Problems) -> tuple[Joined, list[str]]:
    """Merge the sources of values.

    levels: the sources, highest precedence first. The first `from_user` are the user's, and the last is the host's.

    Returns:
        The merged levels, and notes for the user.
    """
    notes: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for level in reversed(levels):
        level_notes = join_loss_names(level.source, level.values, trainer, problems)
        notes += level_notes if level in levels[:from_user] else []
        values.update(level.values)
        sources.update(dict.fromkeys(level.values, level.source))
    user_sources = tuple(level.source for level in levels[:from_user])
    return Joined(values, sources, user_sources, frozenset(levels[-1].values), problems), notes


def _preset(user_levels: list[Level]) -> Level | None:
    """Return the level of the preset that the user named; None without a preset.

    Raises:
        UserError: The preset does not exist, or belongs to another mode.
    """
    user_values = ChainMap(*(level.values for level in user_levels))
    name, mode = user_values.get("preset"), user_values.get("train_mode")
    if name is None:
        return None
    if not isinstance(name, str) or name not in PRESETS:
        hint = nearest(name, set(PRESETS))
        raise UserError(f"preset: there is no preset {name!r:.80}{hint} `mlx_lm_lora.prefplus presets` lists them.")
    preset = PRESETS[name]
    if mode not in (None, preset.mode):
        raise UserError(f"preset: {name} is for train_mode {preset.mode}, not {mode}. Change or remove one of them.")
    return Level(f"preset {name}", {"train_mode": preset.mode, **values_beside(preset, user_values)})


def _set_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not None, with paths as text."""
    return {
        str(key): os.fspath(value) if isinstance(value, os.PathLike) else value
        for key, value in values.items()
        if value is not None
    }


def defaults_of(trainer: Trainer, options: Any) -> dict[str, Any]:
    """Return key → default value in the mode of a trainer. `options` names the losses, which may have their own
    defaults.
    """
    import mlx_lm_lora.train as host

    losses = {key: getattr(options, key) for key in ("loss_type", "loss_weights") if hasattr(options, key)}
    own: dict[str, Any] = {}
    with suppress(TypeError, ValueError, UserError):  # raised if a required key has no default
        own = vars(trainer.options(**losses))
    return {**_host_defaults(host).values, **_trainer_defaults(trainer).values, **own}


def _trainer_defaults(trainer: Trainer) -> Level:
    fields = {**own_fields(), **option_fields(trainer.options)}
    values = {
        key: field.get_default(call_default_factory=True) for key, field in fields.items() if not field.is_required()
    }
    return Level(TRAINER_DEFAULT, {**values, **trainer.defaults})


def _host_defaults(host: Any) -> Level:
    """Return the host's `CONFIG_DEFAULTS`. For other keys, add the defaults of its parser and of this package."""
    settings = {
        key: field.get_default(call_default_factory=True)
        for model in (DataSettings, RunSettings)
        for key, field in model.model_fields.items()
        if key not in OWN_KEYS
    }
    parser = originals_of(host)["build_parser"]()
    parsed = {action.dest: action.default for action in actions(parser) if action.dest != "help"}
    return Level(HOST_DEFAULT, {**parsed, **settings, **host.CONFIG_DEFAULTS})


def _idle_keys(user_levels: list[Level], used: set[str], host_level: Level) -> list[str]:
    """Return the keys of the host that the user changed and that this mode does not use."""
    used |= {*RunSettings.model_fields, *DataSettings.model_fields, "config", "dpo_cpo_loss_type"}
    return [
        key
        for key, value in ChainMap(*(level.values for level in user_levels)).items()
        if key in host_level.values and key not in used and value != host_level.values[key]
    ]


def _unknown_keys(
    level: Level, keys: set[str], mode: str, registry: Registry, values: Mapping[str, Any], problems: Problems
) -> tuple[list[str], list[str]]:
    """Report the keys that the mode does not have.

    An option of another mode is a problem if its value differs from its default. If the command line names the mode,
    the config file may serve several modes, so it may set options of other modes.

    A misspelled key in a file is a problem if the key that was probably meant affects the result. It is accepted if
    that key has the same value anyway: files of older releases contain `fine_tune_type: lora`. Unknown keys among
    command-line values are accepted too, because programs may pass objects with further attributes.

    Returns:
        Notes on accepted keys: those that resemble no existing key or belong to other modes, and the misspelled ones.
    """
    others, misspelt = list[str](), list[str]()
    shared = level.source != COMMAND_LINE and level.values.get("train_mode") != mode
    used = {*RunSettings.model_fields, *DataSettings.model_fields, *option_fields(registry[mode].trainer.options)}
    for key, value in level.values.items():
        if key in keys:
            continue
        ignored = f"{key} ({level.source}) is not a key of this mode and is ignored"
        if modes := _modes_with(key, registry):
            of_modes = f"belongs to train_mode {owners(registry).get(key)}"
            if all(value == default for default in modes.values()):
                others.append(f"{ignored}.")
            elif shared:
                others.append(f"{key} ({level.source}) {of_modes} and is not used in mode {mode}.")
            else:
                problems.add(key, value, level.source, f"is not a key of mode {mode}; it {of_modes}")
            continue
        if match := near(key, keys):
            hint = f"did you mean {match.name}?"
        elif match := near(key, _options_of(registry)):
            hint = f"did you mean {match.name}, of mode {' and '.join(_modes_with(match.name, registry))}?"
        else:
            others.append(f"{ignored}.")
            continue
        decides = match.sure and match.name in used - WITHOUT_EFFECT_ON_RESULTS
        if level.source != COMMAND_LINE and decides and value != values.get(match.name):
            problems.add(key, value, level.source, f"is not a key of mode {mode}; {hint}")
        else:
            misspelt.append(f"{ignored}; {hint}")
    return others, misspelt


def _options_of(registry: Registry) -> set[str]:
    return {key for registered in registry.modes.values() for key in option_fields(registered.trainer.options)}


def _modes_with(key: str, registry: Registry) -> dict[str, Any]:
    """Return mode → default of the option `key`, for each mode that has this option."""
    return {
        mode: fields[key].get_default(call_default_factory=True)
        for mode, registered in registry.modes.items()
        if key in (fields := option_fields(registered.trainer.options))
    }
