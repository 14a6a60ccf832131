"""Turn the training flags that a command of this package accepts into the settings of a run."""

from collections.abc import Sequence
from typing import Any

from ...plugin.installed import registry
from ..originals import originals_of
from .early_args import check_mode, requested_mode, scan
from .flags import add_modes, modes_of, parser_of
from .parsers import option_strings
from .resolve import Resolved, resolve
from .yaml_file import read_config


def settings_of(argv: Sequence[str], **fallbacks: Any) -> Resolved:
    """Resolve `[CONFIG] [flags of mlx_lm_lora.train]` as the host's command would.

    Args:
        argv: the arguments.
        fallbacks: values for keys that are neither on the command line nor in the file. They are treated as if typed.

    Raises:
        UserError: The config cannot be read, or settings are invalid. The message lists all invalid settings.
        SystemExit: A flag does not exist (argparse has printed it).
    """
    import mlx_lm_lora.train as host

    build = originals_of(host)["build_parser"]
    argv = ["--config", *argv] if argv and not argv[0].startswith("-") else list(argv)
    request = scan(argv, option_strings(build()))
    config = read_config(request.config, host.yaml_loader) if request.config else {}
    mode_of_request = requested_mode(request, lambda path: config)
    mode = mode_of_request or fallbacks.get("train_mode")
    check_mode(request, lambda path: config, modes_of(add_modes(build(), registry())))
    typed = vars(parser_of(build, mode, registry()).parse_args(argv))
    set_keys = {*config, *(key for key, value in typed.items() if value is not None)}
    if mode_of_request:  # a preset may name the mode
        set_keys.add("train_mode")
    added = {key: value for key, value in fallbacks.items() if key not in set_keys}
    return resolve({**typed, **added}, registry())
