"""Whether a process runs, by what the system says of it."""

import os
import shutil
import subprocess
import sys

import pytest

from mlx_lm_lora_prefplus.storage import processes
from mlx_lm_lora_prefplus.storage.processes import runs, this_process


@pytest.fixture(params=["proc", "ps"])
def source(request, monkeypatch):
    """Where the start of a process is read: Linux has both, macOS has ps."""
    if request.param == "proc" and sys.platform != "linux":
        pytest.skip("there is no /proc here")
    if request.param == "ps":
        if not shutil.which("ps"):
            pytest.skip("there is no ps here")
        monkeypatch.setattr(processes, "_from_proc", processes._from_ps)


def test_a_process_runs_until_it_is_killed_also_before_it_is_waited_for(source):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        found = this_process()._replace(pid=other.pid, started=processes._started(other.pid))
        assert found.started
        assert runs(found) and runs(this_process()) and not runs(found._replace(started="another"))
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
        assert runs(found) is False
    assert runs(found) is False


def test_the_time_zone_changes_nothing(source, monkeypatch):
    before = this_process()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert runs(before) and this_process() == before


@pytest.mark.parametrize("change", [{"boot": "another"}, {"boot": ""}, {"namespace": "another"}])
def test_processes_of_other_machines_cannot_be_seen(change):
    assert runs(this_process()._replace(**change)) is None


def test_numbers_that_no_process_has():
    assert runs(this_process()._replace(pid=2**40)) is False
