"""Argument parsers with short errors: the host's parser with all modes, and the parser of one of this
package's modes.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ...printing import columns, error_text
from ...settings import FIELDS, GROUPS
from .names import SYNONYMS, near

Owners = Mapping[str, str]
"""Key of a mode → the modes and losses that use it, in words."""


class ShortErrorParser(argparse.ArgumentParser):
    """The host's parser with short errors. Without it, an error prints the usage, which has over a hundred lines.

    mode: the requested mode; None if no mode is requested.
    owners: the keys of this package's modes.
    """

    def __init__(self, host: argparse.ArgumentParser, mode: str | None, owners: Owners):
        super().__init__(
            prog="python -m mlx_lm_lora.train" if host.prog.endswith(".py") else "mlx_lm_lora.train",
            description=host.description,
            epilog=host.epilog,
            formatter_class=host.formatter_class,
            parents=[host],
            add_help=False,
        )
        self.mode, self.owners = mode, owners

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None):  # type: ignore[override]
        """As in `argparse`, but the error names each unknown option with the closest existing one."""
        typed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            problems = [self._problem(argument) for argument in unknown if argument.startswith("-")]
            self.error(_listed(problems) if problems else f"{unknown[0]!r} does not belong to any option. Remove it.")
        return typed

    def _problem(self, argument: str) -> str:
        """Return why an option is not accepted, with the option that was probably meant."""
        option = argument.partition("=")[0]
        key = option.lstrip("-").replace("-", "_")
        text = f"{option} is not an option of --train-mode {self.mode}"
        if not self.mode:
            text = f"{option} is not an option of the default --train-mode, which is sft"
        if key in self.owners:
            return f"{text}. It belongs to --train-mode {self.owners[key]}."
        own = {one.lstrip("-").replace("-", "_") for one in option_strings(self) if one.startswith("--")}
        if not (match := near(key, own) or near(key, self.owners)):
            return f"{text}."
        text += f"; did you mean --{match.name.replace('_', '-')}"
        return f"{text}?" if match.name in own else f"{text}, of --train-mode {self.owners[match.name]}?"

    def error(self, message: str) -> NoReturn:
        """Print the error with the command that lists the options, and exit with code 2."""
        text = _plain(message)
        text += "" if text.endswith(("?", ".")) else "."
        mode = f" --train-mode {self.mode}" if self.mode else ""
        self.exit(2, error_text(f"{text}\n`{self.prog}{mode} --help` lists the options.") + "\n")


class ModeParser(ShortErrorParser):
    """The parser of one of this package's modes. The host's abbreviations keep their meaning.

    Among the host's options, `--resume x` is an unambiguous abbreviation of `--resume-adapter-file x`. It must keep
    this meaning although this package adds `--resume`. Abbreviations are therefore expanded against the host's options
    before argparse sees them.
    """

    def __init__(self, host: argparse.ArgumentParser, mode: str, owners: Owners):
        super().__init__(host, mode, owners)
        self.host_options = option_strings(host)
        self.mode_title = ""
        self.mode_keys: tuple[str, ...] = ()

    def _is_synonym(self, argument: str) -> bool:
        """Return whether this is an option of another program that happens to abbreviate one of ours, such
        as `--lr`.
        """
        option = argument.partition("=")[0]
        return option.startswith("--") and option[2:].replace("-", "_") in SYNONYMS

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None):  # type: ignore[override]
        """As in `argparse`, with the host's abbreviations expanded."""
        if args is None:
            args = sys.argv[1:]
        argv = expand_resume(list(args))
        end = argv.index("--") if "--" in argv else len(argv)
        ours = option_strings(self)
        argv[:end] = [one if one.partition("=")[0] in ours else expand(one, self.host_options) for one in argv[:end]]
        if synonyms := [one for one in argv[:end] if one.partition("=")[0] not in ours and self._is_synonym(one)]:
            self.error(_listed([*map(self._problem, synonyms)]))
        return super().parse_known_args(argv, namespace)

    def format_help(self) -> str:
        """List the options of this mode first, then, in groups, the options that all modes share.

        Options of the host's other modes are left out.
        """
        formatter = argparse.HelpFormatter(self.prog, max_help_position=26, width=columns())
        formatter.add_usage(self.usage or self._short_usage(), [], [])
        formatter.add_text(
            "Every option also works in the config file, with _ for -: --learning-rate is learning_rate. "
            "Options of the command line override the file."
        )
        by_key = {action.dest: action for action in actions(self) if action.option_strings[-1] != "--no-fuse"}
        groups = {self.mode_title: self.mode_keys, "Config file and help": ("config", "help"), **GROUPS}
        for title, keys in groups.items():
            formatter.start_section(title)
            formatter.add_arguments([by_key[key] for key in keys if key in by_key])
            formatter.end_section()
        formatter.add_text(
            "mlx-lm-lora's options for its other modes, such as --group-size, are accepted and have no effect here."
        )
        return formatter.format_help()

    def _short_usage(self) -> str:
        start = f"%(prog)s --train-mode {self.mode}"
        return f"{start} --train --model MODEL --data DATA [options]\n       %(prog)s --config FILE [options]"


METAVARS = {
    **{"model": "MODEL", "reference_model_path": "MODEL", "train_mode": "MODE", "data": "DATA", "adapter_path": "DIR"},
    **{"config": "FILE", "resume_adapter_file": "FILE", "save_best": "METRIC", "early_stopping_metric": "METRIC"},
    **{key: "COLUMN" for key in FIELDS if key.endswith("_feature")},
}
"""Return key → the placeholder of its value in the help."""


def describe_options(parser: argparse.ArgumentParser, defaults: Mapping[str, Any]) -> None:
    """Give the host's options the descriptions that they have in this package's modes, and short placeholders.

    defaults: key → its default in this mode.
    """
    for action in actions(parser):
        if field := FIELDS.get(action.dest):
            default = defaults.get(action.dest, field.default) if action.dest != "train_mode" else None
            action.help = help_text(field.description or "", (), default)
        if action.dest == "config":
            action.help = "YAML file with the settings of the run."
        if action.dest in METAVARS:
            action.metavar = METAVARS[action.dest]
        elif action.nargs != 0 and not action.choices:
            action.metavar = {int: "N", float: "X"}.get(action.type, "NAME")  # type: ignore[arg-type]


def help_text(description: str, choices: Sequence[Any] = (), default: Any = None) -> str:
    """Return the help of an option: its meaning, its choices, its default."""
    text = f"{description} One of: {', '.join(map(str, choices))}." if choices else description
    if default is not None and default not in ({}, [], False) and "(default: " not in description:
        shown = "on" if default is True else _yaml(default)
        text = f"{text.removesuffix('.')} (default: {shown})."
    return text.replace("%", "%%")


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {one}' for key, one in value.items())}}}"
    return str(value)


def expand_resume(argv: list[str]) -> list[str]:
    """Expand `--resume FILE`, the host's abbreviation of `--resume-adapter-file`. This package's `--resume` takes no
    file.
    """
    own = ("true", "false", "force")
    for place, argument in enumerate(argv):
        following = argv[place + 1] if argument == "--resume" and place + 1 < len(argv) else "--"
        value = argument.removeprefix("--resume=") if argument.startswith("--resume=") else following
        if argument.partition("=")[0] == "--resume" and value not in own and not value.startswith("-"):
            argv[place] = argument.replace("--resume", "--resume-adapter-file", 1)
    return argv


def expand(argument: str, options: Sequence[str]) -> str:
    """Expand the option of an argument if it abbreviates exactly one of `options`; otherwise return it unchanged."""
    option, equals, value = argument.partition("=")
    if not option.startswith("--") or option == "--" or option in options:
        return argument
    matches = [candidate for candidate in options if candidate.startswith(option)]
    return matches[0] + equals + value if len(matches) == 1 else argument


def option_strings(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """Return every spelling of every option of a parser."""
    return tuple(option for action in actions(parser) for option in action.option_strings)


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options of a parser. argparse has no public name for this list."""
    return parser._actions


def _listed(problems: Sequence[str]) -> str:
    return problems[0] if len(problems) == 1 else "\n  - ".join(["These options cannot be used:", *problems])


def _plain(message: str) -> str:
    """Turn a message of argparse into a sentence that says what was given and what is allowed."""
    match = re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL)
    if not match:
        return message
    option, problem = match[1].split("/")[-1], match[2]
    if problem == "expected one argument":
        return f"{option} needs a value, but none was given."
    if wrong := re.fullmatch(r"invalid (int|float) value: (.*)", problem):
        return f"{option}: {wrong[2]} is not a {'whole ' * (wrong[1] == 'int')}number."
    if wrong := re.fullmatch(r"invalid choice: (.*) \(choose from (.*)\)", problem):
        choices = wrong[2].replace("'", "")
        match = near(wrong[1].strip("'"), choices.split(", "))
        hint = f" Did you mean {match.name}?" if match else ""
        return f"{option}: {wrong[1]} is not one of {choices}.{hint}"
    return f"{option}: {problem}"
