"""A seeded sample of the faults of each mode, and some lives of a run. `walk.py` and `life.py` go through all."""

import subprocess
import sys

import pytest

from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def command(*arguments: str) -> str:
    """What a module of this folder prints; it must end with 0."""
    ended = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_fault_costs_no_more_than_the_step_under_way():
    out = command("tests.reliability.walk", "--sample", "1")
    assert out.count(" faults (") == 8 and "0 broke a promise" in out


def test_no_order_of_events_loses_weights_or_uses_wrong_numbers():
    assert "every promise held" in command("tests.reliability.life", "--examples", "2")
