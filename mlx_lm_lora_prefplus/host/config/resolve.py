"""What the user wrote → the settings of a run: command line > config file > preset > trainer default > host default.

The host fills a key from the config file only where argparse left None, which 24 of its keys never are. Here
every key goes down the same levels, so what a file says is what the run does.
"""

import dataclasses
import os
from collections import ChainMap
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...errors import UserError
from ...losses import LossOptions, borrowed_defaults
from ...plugin.manager import Registry
from ...plugin.protocol import Trainer
from ...settings import COLUMNS_OF_OTHERS, OWN_KEYS, DataSettings, Effect, RunSettings, keys_with, own_fields
from ..originals import originals_of
from .flags import actions, option_fields
from .names import near, nearest
from .nested import check_nested
from .presets import PRESETS, TWO_NAMES, values_beside
from .problems import Joined, Problems, check_losses, checked, join_loss_names
from .yaml_file import read_config

COMMAND_LINE = "command line"
TRAINER_DEFAULT = "trainer default"
HOST_DEFAULT = "host default"

WITHOUT_EFFECT_ON_RESULTS = {*keys_with(Effect.SHOWS), "config"}
"""Keys that decide what is shown and kept, not what is trained: a run whose file misspells one starts all the same."""


class Resolved(NamedTuple):
    """Everything a run needs to know, checked.

    trainer, provider: who runs the mode.
    settings, data, options: the checked values; `options` is an instance of `trainer.options`.
    values: every key with its value, the host's keys too, for the host's own functions.
    sources: key → "command line", "config FILE", "preset NAME", "trainer default" or "host default".
    notes: what the user should be told before the run, a sentence each.
    misspelt: those of the notes that name a key nobody knows beside one that was probably meant.
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


class Level(NamedTuple):
    """One place that values come from, by the name users know it by."""

    source: str
    values: dict[str, Any]


def resolve(typed: Mapping[str, Any], registry: Registry, *, read_file: bool = True) -> Resolved:
    """Resolve and check all settings of a run in one of the registry's modes.

    Args:
        typed: what was given on the command line or by a caller from Python; None is the same as not given.
        registry: the installed modes.
        read_file: whether the config file that `typed` names is read; the host's `run` does not.

    Raises:
        UserError: everything that is wrong, at once; or two packages bring the mode.
    """
    import mlx_lm_lora.train as host

    given = [Level(COMMAND_LINE, _given(typed))]
    path = given[0].values.get("config")
    if path and read_file:
        given.append(Level(f"config {path}", read_config(path, host.yaml_loader)))
    preset = _preset(given)
    levels = [*given, *([preset] if preset else [])]
    mode = ChainMap(*(level.values for level in levels)).get("train_mode", host.CONFIG_DEFAULTS["train_mode"])
    if not isinstance(mode, str) or mode not in registry:
        raise UserError(f"train_mode {mode!r:.80} is none of the plugin modes installed here: {', '.join(registry)}.")
    trainer, provider = registry[mode]
    of_trainer, of_host = _trainer_defaults(trainer), _host_defaults(host)
    problems = Problems()
    joined, notes = _join([*levels, of_trainer, of_host], len(given), trainer, problems)
    known = {*of_trainer.values, *of_host.values, *COLUMNS_OF_OTHERS}
    misspelt = [
        note for level in given for note in _misspelt_keys(level, known, mode, registry, joined.values, problems)
    ]
    notes += [note for level in given for note in _keys_of_others(level, known, mode, registry, problems)]
    notes += misspelt
    if idle := _idle_keys(given, {*of_trainer.values, *COLUMNS_OF_OTHERS}, of_host):
        notes.append(f"not used in mode {mode}: {', '.join(sorted(idle))} (of mlx-lm-lora)")

    check_nested(joined, problems)
    notes += check_losses(trainer, joined, problems)
    settings, data, options = (checked(kind, joined, problems) for kind in (RunSettings, DataSettings, trainer.options))
    if getattr(options, "sync_ref_model", False) and (path := joined.values["reference_model_path"]):
        what = "cannot follow the policy with sync_ref_model: its reference begins at the model itself; leave out one"
        problems.add("reference_model_path", path, joined.sources["reference_model_path"], what)
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


def _join(levels: list[Level], given: int, trainer: Trainer, problems: Problems) -> tuple[Joined, list[str]]:
    """Lay the levels over one another; the first `given` of them are the user's, the last is the host's.

    Returns:
        The levels joined, and what the user should be told.
    """
    notes: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for level in reversed(levels):
        told = join_loss_names(level.source, level.values, trainer, problems)
        notes += told if level in levels[:given] else []
        values.update(level.values)
        sources.update(dict.fromkeys(level.values, level.source))
    of_user = tuple(level.source for level in levels[:given])
    return Joined(values, sources, of_user, frozenset(levels[-1].values)), notes


def _preset(given: list[Level]) -> Level | None:
    """The level of the preset that the user named.

    Raises:
        UserError: there is none of that name, or it is for another mode.
    """
    chosen = ChainMap(*(level.values for level in given))
    name, mode = chosen.get("preset"), chosen.get("train_mode")
    if name is None:
        return None
    if not isinstance(name, str) or name not in PRESETS:
        near = nearest(name, set(PRESETS))
        raise UserError(f"preset: there is no preset {name!r:.80}{near} `mlx_lm_lora.prefplus presets` lists them.")
    preset = PRESETS[name]
    if mode not in (None, preset.mode):
        raise UserError(f"preset: {name} is for train_mode {preset.mode}, not {mode}. Leave one of the two out.")
    return Level(f"preset {name}", {"train_mode": preset.mode, **values_beside(preset, chosen)})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is set, with paths as text."""
    return {
        str(key): os.fspath(value) if isinstance(value, os.PathLike) else value
        for key, value in values.items()
        if value is not None
    }


def _trainer_defaults(trainer: Trainer) -> Level:
    fields = {**own_fields(), **option_fields(trainer.options)}
    values = {
        key: field.get_default(call_default_factory=True) for key, field in fields.items() if not field.is_required()
    }
    return Level(TRAINER_DEFAULT, {**values, **trainer.defaults})


def _host_defaults(host: Any) -> Level:
    """`CONFIG_DEFAULTS`, then what only the settings or the parser know."""
    settings = {
        key: field.get_default(call_default_factory=True)
        for model in (DataSettings, RunSettings)
        for key, field in model.model_fields.items()
        if key not in OWN_KEYS
    }
    parser = originals_of(host)["build_parser"]()
    parsed = {action.dest: action.default for action in actions(parser) if action.dest != "help"}
    return Level(HOST_DEFAULT, {**parsed, **settings, **host.CONFIG_DEFAULTS})


def _idle_keys(given: list[Level], used: set[str], of_host: Level) -> list[str]:
    """Keys of the host's other modes that the user changed."""
    used |= {*RunSettings.model_fields, *DataSettings.model_fields, "config", "dpo_cpo_loss_type"}
    return [
        key
        for key, value in ChainMap(*(level.values for level in given)).items()
        if key in of_host.values and key not in used and value != of_host.values[key]
    ]


def _keys_of_others(level: Level, known: set[str], mode: str, registry: Registry, problems: Problems) -> list[str]:
    """Refuse options of other modes, unless at their default; notes on the rest, and on keys like no other.

    A file that serves several modes, which has its mode from the command line, may hold options of all of them.
    """
    notes = []
    shared = level.source != COMMAND_LINE and level.values.get("train_mode") != mode
    for key, value in level.values.items():
        if key in known:
            continue
        modes = _modes_with(key, registry)
        told = f"mode{'s' * (len(modes) > 1)} {', '.join(modes)}"
        if not modes:
            if near(key, known | _options_of(registry)) is None:
                notes.append(f"{key} ({level.source}) is no key of this mode and is ignored.")
        elif all(value == default for default in modes.values()):
            notes.append(f"{key} ({level.source}) is no key of this mode and is ignored.")
        elif shared:
            notes.append(f"{key} ({level.source}) belongs to {told} and is not used in mode {mode}.")
        else:
            problems.add(key, value, level.source, f"is no key of mode {mode}; it belongs to {told}")
    return notes


def _misspelt_keys(
    level: Level, known: set[str], mode: str, registry: Registry, values: Mapping[str, Any], problems: Problems
) -> list[str]:
    """Refuse a key of a file that is a misspelling of one that decides the result; notes on other misspellings.

    A value that is in force all the same is no reason to refuse: files of older releases say `fine_tune_type: lora`.
    Programs may pass objects with attributes of their own, so what they give is never refused for its name.
    """
    notes = []
    for key, value in level.values.items():
        if key in known or _modes_with(key, registry):
            continue
        if found := near(key, known):
            meant = f"did you mean {found.name}?"
        elif found := near(key, _options_of(registry)):
            meant = f"did you mean {found.name}, of mode {' and '.join(_modes_with(found.name, registry))}?"
        else:
            continue
        used = {*RunSettings.model_fields, *DataSettings.model_fields, *option_fields(registry[mode].trainer.options)}
        decides = found.sure and found.name in used - WITHOUT_EFFECT_ON_RESULTS
        if level.source != COMMAND_LINE and decides and value != values.get(found.name):
            problems.add(key, value, level.source, f"is no key of mode {mode}; {meant}")
        else:
            notes.append(f"{key} ({level.source}) is no key of this mode and is ignored; {meant}")
    return notes


def _options_of(registry: Registry) -> set[str]:
    return {key for registered in registry.modes.values() for key in option_fields(registered.trainer.options)}


def _modes_with(key: str, registry: Registry) -> dict[str, Any]:
    """The modes that have this option → its default there."""
    return {
        mode: fields[key].get_default(call_default_factory=True)
        for mode, registered in registry.modes.items()
        if key in (fields := option_fields(registered.trainer.options))
    }
