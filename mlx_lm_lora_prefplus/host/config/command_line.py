"""The flags of training on the companion's commands → the settings of a run."""

from collections.abc import Sequence
from typing import Any

from ...plugin.installed import registry
from ..originals import originals_of
from .early_args import check_mode, requested_mode, scan
from .flags import add_modes, mode_parser, modes_of, option_strings, spell_out
from .resolve import Resolved, resolve
from .yaml_file import read_config


def settings_of(words: Sequence[str], command: str, **unless_given: Any) -> Resolved:
    """Resolve `[CONFIG] [flags of mlx_lm_lora.train]` as the host's command would.

    command: as the user typed it, for the usage line.
    unless_given: values that count as typed where neither the command line nor the file has them.

    Raises:
        UserError: the config cannot be read, or settings cannot work; all of them at once.
        SystemExit: a flag is not known (argparse has said so).
    """
    import mlx_lm_lora.train as host

    build = originals_of(host)["build_parser"]
    words = ["--config", *words] if words and not words[0].startswith("-") else list(words)
    options = option_strings(build())
    request = scan(words, lambda word: spell_out(word, options))
    given = read_config(request.config, host.yaml_loader) if request.config else {}
    asked = requested_mode(request, lambda path: given)
    mode = asked or unless_given.get("train_mode")
    parser = add_modes(build(), registry())
    check_mode(request, lambda path: given, modes_of(parser))
    if mode and mode in registry():
        parser = mode_parser(parser, registry()[mode], registry())
    parser.prog, parser.usage = command, f"{command} [CONFIG] [flags of mlx_lm_lora.train]"
    typed = vars(parser.parse_args(words))
    known = {"train_mode"} if asked else set()
    more = {key: value for key, value in unless_given.items() if typed.get(key) is None and key not in {*given, *known}}
    return resolve({**typed, **more}, registry())
