"""The command line of this package's modes: the host's flags, a flag for each of the host's config keys that has none,
and a flag for each key of the mode.
"""

import argparse
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from ...plugin.manager import Registered, Registry
from ...settings import FIELDS, Optimizer, own_fields
from .names import either
from .option_fields import option_fields
from .parsers import METAVARS, ModeParser, ShortErrorParser, actions, describe_options, help_text
from .yaml_file import load_yaml


def add_modes(parser: argparse.ArgumentParser, registry: Registry) -> argparse.ArgumentParser:
    """Add this package's modes to the choices of the host's `--train-mode`. Changes the parser in place."""
    for action in actions(parser):
        if action.dest == "train_mode" and action.choices is not None:
            action.choices = [*action.choices, *(mode for mode in registry if mode not in action.choices)]
    return parser


def modes_of(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """Return the choices of `--train-mode`; empty if it accepts anything."""
    return next((tuple(one.choices) for one in actions(parser) if one.dest == "train_mode" and one.choices), ())


def parser_of(
    build: Callable[[], argparse.ArgumentParser], mode: str | None, registry: Registry
) -> "ModeParser | ShortErrorParser":
    """Return the parser of one of this package's modes, or the host's. build: makes a new parser of the host."""
    if mode and mode in registry:
        return mode_parser(add_modes(build(), registry), registry[mode], registry)
    return host_parser(build(), mode, registry)


def mode_parser(host: argparse.ArgumentParser, registered: Registered, registry: Registry | None = None) -> ModeParser:
    """Return the parser of one of this package's modes. An option that is not typed has the value None.

    Args:
        host: a new parser of the host. Its options are copied.
        registered: the trainer of the mode and its package.
        registry: all modes, so that errors can name the mode that an option belongs to.
    """
    trainer = registered.trainer
    parser = ModeParser(host, trainer.mode, owners(registry) if registry else {})
    host_actions = {action.dest: action for action in actions(parser)}
    describe_options(parser, trainer.defaults)
    options = option_fields(trainer.options)
    fields = {**options, **own_fields()}
    for key, field in fields.items():
        if key in host_actions:
            _take_over(host_actions[key], field)
        else:
            _add(parser, key, field, choices=tuple(trainer.losses) if key == "loss_type" else ())
    if "loss_type" not in fields and trainer.losses:
        parser.add_argument("--loss-type", metavar="NAME", help=f"One of: {', '.join(trainer.losses)}.")
    optimizer = host_actions["optimizer"]
    optimizer.choices, optimizer.metavar = None, "NAME"  # the host allows only three optimisers; `resolve` checks it
    default = trainer.defaults.get("optimizer", FIELDS["optimizer"].default)
    optimizer.help = help_text("Optimiser.", typing.get_args(Optimizer), default)
    if (loss_type := host_actions.get("dpo_cpo_loss_type")) and trainer.losses:
        loss_type.choices, loss_type.metavar = None, "NAME"  # the value may be a list of losses; `resolve` checks it
        loss_type.type = _reader(fields["loss_type"].annotation) if "loss_type" in fields else str
        loss_type.help = "The name of --loss-type in mlx-lm-lora."
    _add_missing(parser, set(host_actions) | set(fields))
    parser.set_defaults(**{action.dest: None for action in actions(parser) if action.dest != "help"})
    parser.mode_title = f"Options of --train-mode {trainer.mode} ({registered.provider})"
    aliases = ("loss_type", "dpo_cpo_loss_type") if trainer.losses else ()
    parser.mode_keys = tuple(dict.fromkeys([*aliases, *options]))
    return parser


def host_parser(host: argparse.ArgumentParser, mode: str | None, registry: Registry) -> ShortErrorParser:
    """Return the host's parser for its own modes. It accepts all modes in `--train-mode`, and its errors are short.

    mode: the requested mode; None if none is requested.
    """
    parser = ShortErrorParser(add_modes(host, registry), mode, owners(registry))
    parser.epilog = parser.epilog or f"{parser.prog} --train-mode dpo --help lists the options of one mode."
    return parser


def owners(registry: Registry) -> dict[str, str]:
    """Option of this package's modes → the modes that have it and the losses that use it: `cpo (loss_type simpo) or
    simpo`.
    """
    found: dict[str, list[str]] = {}
    for mode, registered in registry.modes.items():
        losses = registered.trainer.losses
        for key in option_fields(registered.trainer.options):
            users = [
                name
                for name, row in losses.items()
                if key in (*getattr(row, "options", ()), *getattr(row, "instead", ()))
            ]
            named = 0 < len(users) < len(losses) and len(users) <= MOST_NAMED
            found.setdefault(key, []).append(f"{mode} (loss_type {either(users)})" if named else mode)
    return {key: either(modes) for key, modes in found.items()}


MOST_NAMED = 4
"""A message names at most this many losses."""


def _add(group: Any, key: str, field: FieldInfo, choices: Sequence[str] = ()) -> None:
    flag = "--" + key.replace("_", "-")
    members = _members(field.annotation)
    if members == (bool,):
        group.add_argument(flag, dest=key, action=argparse.BooleanOptionalAction, help=_help(field))
        return
    if bool in members:  # a switch that also accepts a value
        group.add_argument(flag, dest=key, nargs="?", const=True, type=_structure, metavar="force", help=_help(field))
        return
    choices = choices or _literals(field.annotation)
    metavar = METAVARS.get(key) or _metavar(field.annotation)
    group.add_argument(flag, dest=key, type=_reader(field.annotation), metavar=metavar, help=_help(field, choices))


def _metavar(annotation: Any) -> str:
    """Return the placeholder of a value in the help."""
    members = _members(annotation)
    if any(typing.get_origin(member) is dict for member in members):
        return "YAML"
    return {int: "N", float: "X"}.get(members[0], "LIST" if typing.get_origin(members[0]) is list else "NAME")


def _take_over(action: argparse.Action, field: FieldInfo) -> None:
    """Keep the host's flag for the key of `field`, but give the flag the mode's help text and type."""
    action.help = _help(field)
    if action.nargs != 0:
        action.type = _reader(field.annotation)


def _add_missing(group: Any, present: set[str]) -> None:
    for key, field in FIELDS.items():
        if key not in present:
            _add(group, key, field)
    group.add_argument(
        "--no-fuse", dest="fuse", action="store_const", const=False, help="Do not write the fused model."
    )


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union except None. For any other annotation, return only the annotation."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(_bare(member) for member in typing.get_args(annotation) if member is not type(None))
    return (_bare(annotation),)


def _bare(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _literals(annotation: Any) -> tuple[str, ...]:
    return tuple(
        str(value)
        for member in _members(annotation)
        if typing.get_origin(member) is typing.Literal
        for value in typing.get_args(member)
    )


def _reader(annotation: Any) -> Callable[[str], Any]:
    """Return how to read the value of a flag: text unchanged, any other type as YAML. `resolve` checks it later."""
    members = _members(annotation)
    plain = [
        value is str or isinstance(value, str)
        for member in members
        for value in (typing.get_args(member) if typing.get_origin(member) is typing.Literal else (member,))
    ]
    return str if all(plain) else _structure


def _structure(text: str) -> Any:
    from mlx_lm_lora.train import yaml_loader

    if not text.strip():  # probably an unset shell variable; the user did not mean the default
        raise argparse.ArgumentTypeError("the value is empty; give a value")
    try:
        return load_yaml(text, yaml_loader)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON or YAML") from error


def _help(field: FieldInfo, choices: Sequence[str] = ()) -> str:
    return help_text(field.description or "", choices, None if field.is_required() else field.default)
