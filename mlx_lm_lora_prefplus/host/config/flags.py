"""The command line of our modes: the host's parser, its missing flags, and one flag for each key of the mode."""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import yaml
from pydantic.fields import FieldInfo

from ...plugin.manager import Registered, Registry
from ...settings import FIELDS, Optimizer, own_fields
from .names import SYNONYMS, near
from .yaml_file import load_yaml


class ModeParser(argparse.ArgumentParser):
    """The host's parser with more options, in which the host's abbreviations keep their meaning.

    `--resume x` is unique among the host's options, so it means `--resume-adapter-file x` whatever options we add:
    abbreviations are spelt out against the host's options before argparse sees them.
    """

    def __init__(self, host: argparse.ArgumentParser, mode: str, others: Mapping[str, Sequence[str]]):
        super().__init__(description=host.description, prog=host.prog, parents=[host], add_help=False)
        self.host_options = option_strings(host)
        self.mode, self.others = mode, others

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None):  # type: ignore[override]
        """As in `argparse`, but the error names each unknown option with the closest existing one."""
        typed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            problems = [self._problem(argument) for argument in unknown if argument.startswith("-")]
            self.error("; ".join(problems) or f"{unknown[0]!r} does not belong to any option")
        return typed

    def _problem(self, argument: str) -> str:
        """Why an option is not accepted, with the option that was probably meant."""
        option = argument.partition("=")[0]
        key = option.lstrip("-").replace("-", "_")
        text = f"{option} is not an option of --train-mode {self.mode}"
        if modes := self.others.get(key):
            return f"{text}; it belongs to --train-mode {' and '.join(modes)}"
        own = {one.lstrip("-").replace("-", "_") for one in option_strings(self) if one.startswith("--")}
        if match := near(key, own) or near(key, self.others):
            text += f"; did you mean --{match.name.replace('_', '-')}?"
        if match and match.name not in own:
            text = f"{text[:-1]}, of --train-mode {' and '.join(self.others[match.name])}?"
        return text

    def _is_synonym(self, argument: str) -> bool:
        """Whether this is another program's option that happens to abbreviate one of ours, such as `--lr`."""
        option = argument.partition("=")[0]
        return option.startswith("--") and option[2:].replace("-", "_") in SYNONYMS

    def error(self, message: str) -> NoReturn:
        """Print one line instead of the usage, which has over a hundred, and exit with code 2."""
        end = "" if message.endswith(("?", ".")) else "."
        help_command = f"{self.prog.split(' [')[0]} --train-mode {self.mode} --help"
        self.exit(2, f"[ERROR] {message}{end} `{help_command}` lists the options.\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None):  # type: ignore[override]
        """As in `argparse`, with the host's abbreviations spelt out."""
        if args is None:
            args = sys.argv[1:]
        argv = spell_out_resume(list(args))
        end = argv.index("--") if "--" in argv else len(argv)
        ours = option_strings(self)
        argv[:end] = [one if one.partition("=")[0] in ours else spell_out(one, self.host_options) for one in argv[:end]]
        if synonyms := [one for one in argv[:end] if one.partition("=")[0] not in ours and self._is_synonym(one)]:
            self.error("; ".join(map(self._problem, synonyms)))
        return super().parse_known_args(argv, namespace)


def spell_out_resume(argv: list[str]) -> list[str]:
    """Spell out `--resume FILE`, the host's abbreviation of `--resume-adapter-file`. Our `--resume` takes no file."""
    own = ("true", "false", "force")
    for place, argument in enumerate(argv):
        following = argv[place + 1] if argument == "--resume" and place + 1 < len(argv) else "--"
        value = argument.removeprefix("--resume=") if argument.startswith("--resume=") else following
        if argument.partition("=")[0] == "--resume" and value not in own and not value.startswith("-"):
            argv[place] = argument.replace("--resume", "--resume-adapter-file", 1)
    return argv


def option_strings(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """Every spelling of every option of a parser."""
    return tuple(option for action in actions(parser) for option in action.option_strings)


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options of a parser. argparse has no public name for this list."""
    return parser._actions


def spell_out(argument: str, options: Sequence[str]) -> str:
    """Spell out the option of an argument if it abbreviates exactly one of `options`; else return it unchanged."""
    option, equals, value = argument.partition("=")
    if not option.startswith("--") or option == "--" or option in options:
        return argument
    matches = [candidate for candidate in options if candidate.startswith(option)]
    return matches[0] + equals + value if len(matches) == 1 else argument


def add_modes(parser: argparse.ArgumentParser, registry: Registry) -> argparse.ArgumentParser:
    """Add our modes to the choices of the host's `--train-mode`. Changes the parser in place."""
    for action in actions(parser):
        if action.dest == "train_mode" and action.choices is not None:
            action.choices = [*action.choices, *(mode for mode in registry if mode not in action.choices)]
    return parser


def modes_of(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """The choices of `--train-mode`; empty if it accepts anything."""
    return next((tuple(one.choices) for one in actions(parser) if one.dest == "train_mode" and one.choices), ())


def mode_parser(host: argparse.ArgumentParser, registered: Registered, registry: Registry | None = None) -> ModeParser:
    """The parser of one of our modes. An option that is not typed has the value None.

    Args:
        host: a fresh parser of the host; its options become part of ours.
        registered: the trainer of the mode and its package.
        registry: all modes, so that errors can name the mode that an option belongs to.
    """
    trainer = registered.trainer
    others: dict[str, list[str]] = {}
    for mode, one in registry.modes.items() if registry else ():
        for key in option_fields(one.trainer.options):
            others.setdefault(key, []).append(mode)
    parser = ModeParser(host, trainer.mode, others)
    host_actions = {action.dest: action for action in actions(parser)}
    group = parser.add_argument_group(f"--train-mode {trainer.mode} ({registered.provider})")
    fields = {**option_fields(trainer.options), **own_fields()}
    for key, field in fields.items():
        if key in host_actions:
            _take_over(host_actions[key], field)
        else:
            _add(group, key, field, choices=tuple(trainer.losses) if key == "loss_type" else ())
    if "loss_type" not in fields and trainer.losses:
        group.add_argument("--loss-type", help=f"Which of: {', '.join(trainer.losses)}.")
    host_actions["optimizer"].choices = None  # the host offers three of MLX's; `resolve` checks the value
    host_actions["optimizer"].help = f"One of: {', '.join(typing.get_args(Optimizer))}."
    if "dpo_cpo_loss_type" in host_actions and trainer.losses:
        host_actions["dpo_cpo_loss_type"].choices = None  # it may be a list; `resolve` checks it
        host_actions["dpo_cpo_loss_type"].type = (
            _reader(fields["loss_type"].annotation) if "loss_type" in fields else str
        )
        host_actions["dpo_cpo_loss_type"].help = "The host's name for --loss-type."
    _add_missing(
        parser.add_argument_group("documented by mlx-lm-lora and missing from its flags"),
        set(host_actions) | set(fields),
    )
    parser.set_defaults(**{action.dest: None for action in actions(parser) if action.dest != "help"})
    return parser


def option_fields(options: type) -> dict[str, FieldInfo]:
    """Key → type, default and description, of a dataclass whose annotations are `Annotated[type, Field(…)]`."""
    hints = typing.get_type_hints(options, include_extras=True)
    fields = {}
    for field in dataclasses.fields(options):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING:
            fields[field.name] = FieldInfo.from_annotation(hints[field.name])
        else:
            fields[field.name] = FieldInfo.from_annotated_attribute(hints[field.name], default)
    return fields


def _add(group: Any, key: str, field: FieldInfo, choices: Sequence[str] = ()) -> None:
    flag = "--" + key.replace("_", "-")
    members = _members(field.annotation)
    if members == (bool,):
        group.add_argument(flag, dest=key, action=argparse.BooleanOptionalAction, help=_help(field))
        return
    if bool in members:  # a switch that also takes a value
        group.add_argument(flag, dest=key, nargs="?", const=True, type=_structure, metavar="HOW", help=_help(field))
        return
    choices = choices or _literals(field.annotation)
    text = _help(field) + (f" One of: {', '.join(choices)}." if choices else "")
    reader = _reader(field.annotation)
    metavar = "YAML" if any(typing.get_origin(member) is dict for member in members) else key.upper()
    group.add_argument(flag, dest=key, type=reader, metavar=metavar, help=text)


def _take_over(action: argparse.Action, field: FieldInfo) -> None:
    """Keep the host's flag of the same key, but give it the mode's help text and type."""
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
    """The types of a union without None, or the one type."""
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
    """How to read the value of a flag: text as it is, any other type as YAML, which `resolve` checks later."""
    members = _members(annotation)
    plain = [
        value is str or isinstance(value, str)
        for member in members
        for value in (typing.get_args(member) if typing.get_origin(member) is typing.Literal else (member,))
    ]
    return str if all(plain) else _structure


def _structure(text: str) -> Any:
    from mlx_lm_lora.train import yaml_loader

    if not text.strip():  # probably an unset shell variable, so the default is not what the user wants
        raise argparse.ArgumentTypeError("expected a value, found nothing")
    try:
        return load_yaml(text, yaml_loader)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"not JSON or YAML: {text!r}") from error


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    if field.is_required() or field.default in (None, {}):
        return text
    return f"{text} (default: {str(field.default).replace('%', '%%')})".strip()
