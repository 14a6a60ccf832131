"""Make an interpreter for MLX-LoRA-Studio that runs this package's functions instead of the app's copy of the host.

The app runs `<python> Backend/training_runner.py --spec run_spec.json` with its copy of the host on `PYTHONPATH`. Users
can choose `<python>` in the app. This command writes a script for that purpose, which starts Python without the copy.
"""

import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from ...errors import UserError
from ...storage.atomic import whole_file
from ..dropin.settings import FILE, VARIABLE
from ..originals import MARK

SCRIPT = """#!/bin/sh
# Written by `mlx_lm_lora.prefplus studio`: a Python for MLX-LoRA-Studio in which mlx-lm-lora-prefplus trains DPO, CPO
# and ORPO. The app's own copy of mlx_lm_lora is removed from PYTHONPATH, so that the installed one is used.
export MLX_LM_LORA_PREFPLUS_PATCH=1
export {variable}="${{{variable}:-$(cd "$(dirname "$0")" && pwd)/{file}}}"
kept=
set -f
IFS=:
for folder in $PYTHONPATH; do
    [ -e "$folder/mlx_lm_lora" ] || kept="$kept${{kept:+:}}$folder"
done
unset IFS
set +f
if [ -n "$kept" ]; then export PYTHONPATH="$kept"; else unset PYTHONPATH; fi
exec {python} "$@"
"""

OPTIONS = """# Options for which MLX-LoRA-Studio has no field, for all runs started with the python3 beside this file.
# A prefplus.yaml in the folder of a run's adapters takes precedence, key by key. Both override the app's form.
# `mlx_lm_lora.train --train-mode dpo --help` lists the keys.

# loss_type: simpo         # in mode cpo; any loss of the mode: see `mlx_lm_lora.prefplus modes`
# label_smoothing: 0.1
# max_grad_norm: 1.0
# on_nonfinite: skip
"""

PROBE = f"import mlx_lm_lora.trainer.dpo_trainer as trainer; print(hasattr(trainer, {MARK!r}))"


class Written(NamedTuple):
    """The script to select in the app, and the options file."""

    python: Path
    options: Path


def write_interpreter(folder: Path, python: str = sys.executable) -> Written:
    """Write the script and test it. If the folder has no options file, write one too.

    Arguments:
        folder: must not be hidden, because the app's file dialog has to list it.
        python: the interpreter in whose environment this package is installed.

    Raises:
        UserError: A file cannot be written, or a program run by the script does not get this package's functions.
    """
    folder = folder.expanduser().absolute()
    written = Written(folder / "python3", folder / FILE)
    if written.python.resolve() == Path(python).absolute():
        raise UserError(f"{written.python} is the interpreter itself and would be replaced. Give another folder.")
    text = SCRIPT.format(variable=VARIABLE, file=FILE, python=shlex.quote(python))
    with whole_file(written.python) as file:
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    if not written.options.exists():
        with whole_file(written.options) as file:
            file.write_text(OPTIONS)
    process = subprocess.run([str(written.python), "-c", PROBE], capture_output=True, text=True)
    if process.stdout.split()[-1:] != ["True"]:
        error = (process.stderr.strip().splitlines() or ["the start-up hook did not run"])[-1]
        raise UserError(
            f"{written.python} was written, but the Python that it starts does not use this package: {error}. "
            "Run `mlx_lm_lora.prefplus doctor` to find out what to do."
        )
    return written


def instructions(written: Written) -> list[str]:
    """Return what to do with the files, as lines of text."""
    return [
        f"Written: {written.python}",
        "In MLX-LoRA-Studio choose this file as the Python interpreter (custom path). DPO, CPO and ORPO then run on "
        "mlx-lm-lora-prefplus; every other mode runs on the mlx-lm-lora that is installed beside it.",
        f"Write options for which the app has no field to {written.options} (for all runs), or to {FILE} in a run's "
        "adapter folder.",
    ]
