"""Wrappers around the host's functions. In the host's modes, they call the original with the same arguments."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ...engine.log.output import command_output
from ...errors import UserError
from ...plugin.installed import registry
from ...printing import print_error
from ..config.early_args import Request, check_mode, requested_mode, scan
from ..config.flags import host_parser, modes_of, parser_of
from ..config.parsers import option_strings
from ..config.resolve import Resolved, resolve
from ..config.yaml_file import read_config
from ..console import print_info, print_warning

NAME = "mlx-lm-lora-prefplus"


def wrappers(host: ModuleType, originals: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return the functions to set in the host's module, by name.

    Args:
        host: the host's module. Its helpers are looked up there at each call, so that other patches of them keep
            working.
        originals: the host's functions by name.
    """
    seam = Seam(host, originals)
    ours = {name: getattr(seam, name) for name in ("build_parser", "main", "run", "load_reference_model")}
    ours |= {name: seam.handed_over(name) for name in ("load_dataset", "train_model", "evaluate_model")}
    return {name: _dressed(function, originals[name]) for name, function in ours.items()}


def _dressed(function: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function with the name, docstring and signature of the original."""

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Seam:
    """The wrapped functions of one host module."""

    def __init__(self, host: ModuleType, originals: Mapping[str, Callable[..., Any]]):
        self.host = host
        self.originals = originals
        self.is_theirs = False
        """Whether the host's `main` is running. It must get the host's parser, whatever is in `sys.argv`."""

    def build_parser(self) -> Any:
        """Return the host's parser, extended by this package's modes. If such a mode is requested, add its flags."""
        mode = self._mode_of(self._request(sys.argv[1:]))
        if self.is_theirs:
            return host_parser(self.originals["build_parser"](), mode, registry())
        return self._parser_of(mode)

    def main(self, args: Any = None) -> Any:
        """Replace the host's `main`: call it, or run one of this package's modes."""
        request = self._request(sys.argv[1:]) if args is None else _request_of(args)
        mode = self._mode_of(request)
        if args is not None:  # another program calls `main` with arguments
            return self._run_ours(mode, args) if mode and mode in registry() else self._their_main(args)
        with _as_command():
            if mode and mode in registry():
                return self._run_ours(mode, args)
            check_mode(request, self._read_config, modes_of(self._parser_of(None)))
        return self._their_main(args)

    def run(self, args: Any, training_callback: Any = None) -> Any:
        """Replace the host's `run`.

        In this package's modes, attributes of `args` other than None count as if typed on the command line.
        """
        if not _is_ours(args):
            return self.originals["run"](args, training_callback)
        with registry().naming_provider(args.train_mode):
            resolved = resolve(vars(args), registry(), read_file=False)
            self._announce(resolved)
            return _run_module().run(resolved, training_callback)

    def load_reference_model(self, args: Any) -> Any:
        """Replace the host's function. In this package's modes, load a reference only if the settings name one.

        Otherwise return None, because the reference is then the policy without its adapters.
        """
        if _is_ours(args) and not getattr(args, "reference_model_path", None):
            return None
        return self.originals["load_reference_model"](args)

    def handed_over(self, name: str) -> Callable[..., Any]:
        """Return a function that calls `host/seam/functions.py` in this package's modes, and the original in the
        host's.
        """

        def function(args: Any, *rest: Any, **named: Any) -> Any:
            target = getattr(_functions_module(), name) if _is_ours(args) else self.originals[name]
            return target(args, *rest, **named)

        return function

    def _their_main(self, args: Any) -> Any:
        self.is_theirs = True
        try:
            return self.originals["main"](args)
        finally:
            self.is_theirs = False

    def _run_ours(self, mode: str, args: Any) -> Any:
        with registry().naming_provider(mode):
            os.environ["TOKENIZERS_PARALLELISM"] = "true"
            try:
                if args is None:
                    typed = vars(self._parser_of(mode).parse_args())
                else:
                    typed = args if isinstance(args, dict) else vars(args)
                resolved = resolve(typed, registry())
            except (UserError, SystemExit) as error:
                if _is_one_of_several():
                    _run_module().tell_other_ranks(error)
                raise
            self.host.print_banner()
            self._announce(resolved)
            self._summarise(resolved.values)
            return _run_module().run(resolved, None)

    def _parser_of(self, mode: str | None) -> Any:
        return parser_of(self.originals["build_parser"], mode, registry())

    def _request(self, argv: list[str]) -> Request:
        return scan(argv, option_strings(self.originals["build_parser"]()))

    def _mode_of(self, request: Request) -> str | None:
        return requested_mode(request, self._read_config)

    def _read_config(self, path: str) -> dict[str, Any]:
        return read_config(path, self.host.yaml_loader, unique=False)

    def _announce(self, resolved: Resolved) -> None:
        """Print which package runs the mode, and notes for the user."""
        mode = resolved.trainer.mode
        print_info(f"--train-mode {mode} is run by {resolved.provider} (MLX_LM_LORA_PREFPLUS=0 turns it off)")
        for note in resolved.notes:
            print_warning(note)

    def _summarise(self, values: Mapping[str, Any]) -> None:
        """Print the host's configuration summary."""
        white, reset = self.host.Colors.WHITE, self.host.Colors.RESET
        lines = {
            "Model": values["model"],
            "Training Mode": values["train_mode"].upper(),
            "Training Type": values["train_type"],
            "Batch Size": values["batch_size"],
            "Learning Rate": values["learning_rate"],
            "Optimizer": values["optimizer"] + " (moments in 8 bits)" * (values["optimizer_bits"] == 8),
        }
        if values["qat_enable"]:
            lines["QAT"] = (
                f"enabled (bits={values['qat_bits']}, group_size={values['qat_group_size']}, "
                f"mode={values['qat_mode']}, start={values['qat_start_step']}, interval={values['qat_interval']})"
            )
        for key, name in (("4bits", "4-bit"), ("6bits", "6-bit"), ("8bits", "8-bit"), ("mxfp4", "mxfp4")):
            if values[f"load_in_{key}"]:
                lines["Quantization"] = name
        self.host.print_section("Configuration Summary")
        for title, value in lines.items():
            print(f"{white}{title}:{reset} {value}")


@contextmanager
def _as_command() -> Iterator[None]:
    """Enclose the work of a process started for a run: print an error as one line, and ignore a closed stdout."""
    with command_output():
        try:
            yield
        except UserError as error:
            print_error(error)
            raise SystemExit(1) from None
        except KeyboardInterrupt as interrupt:
            if not interrupt.args:  # else it was already printed (see `leave`)
                print("\n[ERROR] Interrupted. Adapter files that were already saved are complete.", file=sys.stderr)
            raise SystemExit(130) from None


def _request_of(args: Any) -> Request:
    values = args if isinstance(args, dict) else vars(args)
    config = values.get("config")
    return Request(values.get("train_mode"), os.fspath(config) if config else None, values.get("preset"))


def _is_ours(args: Any) -> bool:
    return getattr(args, "train_mode", None) in registry()


def _is_one_of_several() -> bool:
    """Return whether this process was started by `mlx.launch` or `mpirun`."""
    return any(name in os.environ for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"))


def _run_module() -> Any:
    """Return this package's run, imported when it is needed, because it imports the engine."""
    from ..run import run

    return run


def _functions_module() -> Any:
    """Return this package's versions of the host's functions, imported when they are needed."""
    from . import functions

    return functions
