"""The host's command where nobody takes what it prints: it trains to the end and exits with 0."""

import os
import subprocess
import sys

import pytest

from mlx_lm_lora_prefplus.engine.files.names import LOG
from tests.reliability.conftest import CHILD

pytestmark = pytest.mark.slow

SHELLS = {
    "stdout in head": "{command} 2> errors.txt | head -n 1; exit ${{PIPESTATUS[0]}}",
    "both full": "{command} > /dev/full 2>&1",
    "all closed": "{command} <&- >&- 2>&-",
}


@pytest.mark.parametrize("shell", SHELLS.values(), ids=SHELLS)
def test_nobody_takes_what_is_printed(world, alone, shell):
    if "/dev/full" in shell and not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("there is no /dev/full here")
    command = f"{sys.executable} -m mlx_lm_lora_prefplus train --config {world.write_config()}"
    environment = {**os.environ, "PYTHONPATH": str(CHILD.parents[2])}
    done = subprocess.run(
        ["bash", "-c", shell.format(command=command)],
        **{"cwd": world.folder, "env": environment, "capture_output": True, "text": True, "timeout": 250},
    )
    errors = world.folder / "errors.txt"
    told = done.stderr + (errors.read_text() if errors.exists() else "")
    assert done.returncode == 0 and "Traceback" not in told and "Exception ignored" not in told, told
    assert world.weights("adapters") == alone.weights
    log = (world.folder / "adapters" / LOG).read_text()
    assert "Loading model" in log and "\nIter 3: loss " in log and "Saved final weights" in log and "\x1b" not in log


def test_the_log_goes_on_with_the_run(world):
    assert world.run("step:15", "SIGTERM").code == 143
    assert world.run(flags=["--resume"]).code == 0
    log = (world.folder / "adapters" / LOG).read_text()
    assert log.count("--- 20") == 2 and "Stopped by SIGTERM" in log and "Resuming after iteration" in log
    assert world.run(seed=4).code == 0
    assert (world.folder / "adapters" / "previous-1" / LOG).read_text() == log
    assert (world.folder / "adapters" / LOG).read_text().count("--- 20") == 1
