"""The commands that the quick start suggests at its end, as they can be typed in the user's shell."""

import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MODULES = {"mlx_lm_lora.prefplus": "mlx_lm_lora_prefplus", "mlx_lm.generate": "mlx_lm.generate"}
"""Command → the module that `python -m` runs for it."""


def next_commands(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the purpose of each command, and the command.

    folder: the folder of the quick start.
    """
    model, adapters = folder / "model", folder / "adapters"
    yield (
        "Ask the tuned model:",
        _line(
            "mlx_lm.generate",
            *("--model", model, "--adapter-path", adapters, "--prompt", "Where does the fox live?", "--max-tokens", 32),
        ),
    )
    yield "Write a page about the run, with its curves:", _line("mlx_lm_lora.prefplus", "report", adapters)
    yield "Write a config for your own model and data:", _line("mlx_lm_lora.prefplus", "new")


def _line(name: str, *arguments: object) -> str:
    return f"{command_of(name)} {shlex.join(map(str, arguments))}"


def command_of(name: str) -> str:
    """Return how to call a command of this environment: by name if the shell finds it, otherwise by its path.

    In an environment without a folder of scripts it is `python -m`.
    """
    script = Path(sysconfig.get_path("scripts")) / name
    found = shutil.which(name)
    if found and script.exists() and Path(found).samefile(script):
        return name
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m {MODULES[name]}"
