"""The host's own tests of these trainers against ours, where its source distribution is at hand.

`pip download --no-deps --no-binary :all: mlx-lm-lora==5.10.2`, unpack it, and name the folder in MLX_LM_LORA_SOURCE.
"""

import os
import shutil
import subprocess
import sys

import pytest

from tests.host.tools.test_studio import START_UP
from tests.paths import ROOT

SOURCE = os.environ.get("MLX_LM_LORA_SOURCE")
FILES = ("test_training_algorithms.py", "test_preference_masking.py", "test_dsla.py", "test_mcp_server.py")

SKIPPED = {
    "test_preference_masking.py::PreferenceMaskingTest::test_validation_rewards_use_same_weighting_as_margin": (
        "ref_model=None is the model with its adapters off here"
    ),
    "test_mcp_server.py::ConfigTests::test_modes_and_keys_match_train_py": "our modes are in the table too, as meant",
}
"""Test → why it does not hold with ours."""

METAL = """
import mlx.core as mx
real = mx.device_info
mx.device_info = lambda *device: {"max_recommended_working_set_size": 1 << 34, **real(*device)}
mx.set_wired_limit = lambda size: 0
"""
"""A key that only Metal has and without which the host's DSLA, which is not ours, trains nothing."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOURCE, reason="MLX_LM_LORA_SOURCE names no source distribution of the host"),
]


def test_the_hosts_own_tests_pass(tmp_path, pytestconfig):
    assert SOURCE
    shutil.copytree(pytestconfig.invocation_params.dir / SOURCE / "tests", tmp_path / "tests")
    (tmp_path / "tests/conftest.py").write_text(METAL)
    (tmp_path / "sitecustomize.py").write_text(START_UP)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in FILES)]
    done = subprocess.run(
        [*command, *(f"--deselect=tests/{name}" for name in SKIPPED)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
            "MLX_LM_LORA_PREFPLUS": "strict",
            "MLX_LM_LORA_PREFPLUS_PATCH": "1",
        },
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(SKIPPED)} deselected" in done.stdout
