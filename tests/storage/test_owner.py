"""One process owns a folder; one that is gone gives way, one that still runs does not."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.storage import owner as ownership
from mlx_lm_lora_prefplus.storage.owner import LOCK, owned
from mlx_lm_lora_prefplus.storage.processes import runs, this_process

REFUSED = "process .* is using .*, and two runs in one folder would mix their files"


@pytest.fixture
def fast(monkeypatch):
    """Heartbeats every twentieth of a second."""
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.05)
    monkeypatch.setattr(ownership, "UNREADABLE", 0.2)


def take(folder: Path) -> list[str]:
    """Own the folder for an instant; returns what was told."""
    told: list[str] = []
    with owned(folder, told.append):
        assert (folder / LOCK).is_file()
    assert not list(folder.glob(f"{LOCK}*"))
    return told


def leave_lock(place: Path, age: float = 0.0, **changes) -> None:
    """A lock that its process has left behind, with other words in it. age: seconds since the last heartbeat."""
    place.mkdir(exist_ok=True)
    (place / LOCK).unlink(missing_ok=True)
    with owned(place, print):
        content = json.loads((place / LOCK).read_text())
    content["process"] |= {key: value for key, value in changes.items() if key in content["process"]}
    content |= {key: value for key, value in changes.items() if key in content}
    (place / LOCK).write_text(json.dumps(content))
    then = time.time() - age
    os.utime(place / LOCK, (then, then))


def child(folder: Path) -> subprocess.Popen:
    """Another process that owns the folder until it is killed."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from mlx_lm_lora_prefplus.storage.owner import owned\n"
        "with owned(Path(sys.argv[1]), print):\n    print('owned', flush=True)\n    time.sleep(600)"
    )
    started = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "owned\n"
    return started


def test_it_is_owned_once_and_free_again_afterwards(tmp_path):
    folder = tmp_path / "deep" / "adapters"
    with owned(folder, print) as owner:
        owner.check()
        with pytest.raises(UserError, match=REFUSED) as caught, owned(folder, print):
            pass
        owner.check()
    place = f"process {os.getpid()} on {socket.gethostname()}"
    for part in (place, "begun 20", "another adapter_path", "in this program"):
        assert part in str(caught.value)
    assert "kill" not in str(caught.value), "it would be told to end itself"
    refused = pytest.raises(UserError, match=r"^--output: .*or give another --output")
    with owned(folder, print), refused as caught, owned(folder, print, "--output"):
        pass
    assert "adapter_path" not in str(caught.value)
    assert take(folder) == []


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt, SystemExit])
def test_it_is_free_after_any_end(tmp_path, error):
    with pytest.raises(error), owned(tmp_path, print):
        raise error
    assert take(tmp_path) == []


def test_a_new_folder_that_stays_empty_is_removed(tmp_path):
    """Such as after a run that could not start."""
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "old", tmp_path / "new" / "inner"):
        with pytest.raises(UserError), owned(folder, print):
            raise UserError("a typo")
    assert [one.name for one in tmp_path.iterdir()] == ["old"]
    with owned(tmp_path / "new" / "inner", print):
        (tmp_path / "new" / "notes.txt").touch()
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("times", "works"), [(2, True), (3, False)])
def test_a_folder_that_another_run_removes_at_its_end_is_created_again(tmp_path, monkeypatch, times, works):
    removals, create = iter(range(times)), ownership.Owner._create

    def removed_before(owner):
        if next(removals, None) is not None:
            owner.folder.rmdir()
        return create(owner)

    monkeypatch.setattr(ownership.Owner, "_create", removed_before)
    with contextlib.nullcontext() if works else pytest.raises(UserError, match="cannot be written"):
        take(tmp_path / "adapters")


@pytest.mark.slow
def test_a_process_that_was_killed_gives_way_and_a_stopped_one_does_not(tmp_path, monkeypatch):
    other = child(tmp_path)
    monkeypatch.setattr(ownership, "STALE", -1.0)
    other.send_signal(signal.SIGSTOP)  # its heart does not beat, and yet it is there
    refused = f"process {other.pid} .*{REFUSED.partition('.*')[2]}.*kill {other.pid} saves and stops it"
    with pytest.raises(UserError, match=refused):
        take(tmp_path)
    other.send_signal(signal.SIGCONT)
    os.kill(other.pid, signal.SIGKILL)
    while runs(this_process()._replace(pid=other.pid, started="")):  # not waited for: it stays as a zombie
        time.sleep(0.01)
    (told,) = take(tmp_path)
    assert f"process {other.pid} on" in told and "no longer runs" in told
    other.wait()
    other.stdout.close()


def test_a_number_that_another_process_has_now_gives_way(tmp_path):
    leave_lock(tmp_path, started="1")
    assert "no longer runs" in take(tmp_path)[0]


def test_a_lock_of_this_process_itself_counts(tmp_path):
    leave_lock(tmp_path)
    with pytest.raises(UserError, match=REFUSED):
        take(tmp_path)


def test_another_start_of_this_machine_gives_way(tmp_path, fast):
    leave_lock(tmp_path, boot="another")
    told = take(tmp_path)
    assert "Waiting up to" in told[0] and "no longer runs" in told[1]
    leave_lock(tmp_path, boot="another", age=61)
    assert len(take(tmp_path)) == 1


@pytest.mark.parametrize("change", [{"boot": "another"}, {"namespace": "pid:[1]"}, {"folder": [1, 2]}])
def test_a_heart_that_beats_is_alive_wherever_it_is(tmp_path, fast, change):
    """Another machine of the same name, another container, a folder that is seen under another identity."""
    leave_lock(tmp_path, **change)
    ended = threading.Event()

    def beat():
        while not ended.wait(0.02):
            os.utime(tmp_path / LOCK)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(UserError, match=REFUSED):
            take(tmp_path)
    finally:
        ended.set()
        heart.join()


def test_a_copy_of_the_folder_of_a_running_process_is_free(tmp_path, fast):
    leave_lock(tmp_path, folder=[1, 2])
    assert "no longer runs" in take(tmp_path)[-1]


def test_another_machine_counts_for_a_minute(tmp_path):
    leave_lock(tmp_path, host="elsewhere", boot="another", age=30)
    with pytest.raises(UserError, match=r"on elsewhere.*start this run 60 seconds after its end"):
        take(tmp_path)
    leave_lock(tmp_path, host="elsewhere", boot="another", age=61)
    assert "on elsewhere" in take(tmp_path)[0]


def test_the_clock_of_the_folder_counts(tmp_path, monkeypatch):
    """Where the file server's clock is an hour behind, a fresh heartbeat is fresh all the same."""
    leave_lock(tmp_path, host="elsewhere", boot="another", age=3600)
    touch = Path.touch

    def behind(path, *args, **kwargs):
        touch(path, *args, **kwargs)
        os.utime(path, (time.time() - 3590, time.time() - 3590))

    monkeypatch.setattr(Path, "touch", behind)
    with pytest.raises(UserError, match="on elsewhere"):
        take(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": {}}', '{"process": 3}', "\0" * 100])
def test_a_lock_that_is_not_whole_gives_way(tmp_path, fast, content):
    (tmp_path / LOCK).write_text(content)
    take(tmp_path)


def test_a_folder_that_was_removed_meanwhile_is_told(tmp_path, fast):
    folder = tmp_path / "adapters"
    with owned(folder, print) as owner:
        shutil.rmtree(folder)
        with pytest.raises(UserError, match=r"Could not write .*adapters.*No such file or directory.*create it again"):
            owner.check()
    assert not folder.exists()


def test_a_lock_that_is_a_link_to_nothing_gives_way(tmp_path, fast):
    (tmp_path / LOCK).symlink_to(tmp_path / "nothing")
    take(tmp_path)


def test_a_folder_in_the_place_of_the_lock_is_told_and_stays(tmp_path, fast):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UserError, match=rf"{LOCK} cannot be written .*move the folder away"):
        take(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]


def test_a_heartbeat_from_the_future_counts_only_if_another_one_follows(tmp_path, fast):
    """The clock of the file server was set back by a year after the other machine died."""
    leave_lock(tmp_path, host="elsewhere", boot="another", age=-365 * 24 * 3600)
    assert "on elsewhere" in take(tmp_path)[-1]


def test_the_heart_beats(tmp_path, fast):
    with owned(tmp_path, print):
        os.utime(tmp_path / LOCK, (1, 1))
        end = time.monotonic() + 60
        while (tmp_path / LOCK).stat().st_mtime == 1:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_who_lost_the_folder_writes_nothing_more(tmp_path):
    told: list[str] = []
    with owned(tmp_path, print) as first:
        lock = (tmp_path / LOCK).read_text()
        (tmp_path / LOCK).unlink()
        first.check()  # somebody removed the file, and nobody else took the folder
        content = json.loads(lock)
        content["process"]["host"], content["token"] = "elsewhere", "other"
        (tmp_path / LOCK).write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"taken over by the run of process \d+ on elsewhere.*nothing more"):
            first.check()
    assert json.loads((tmp_path / LOCK).read_text())["token"] == "other" and not told


@pytest.mark.parametrize("locks", [True, False], ids=["flock", "no flock"])
@pytest.mark.parametrize("left", [True, False], ids=["a dead owner", "free"])
@pytest.mark.slow
def test_of_many_at_the_same_instant_one_gets_it(tmp_path, monkeypatch, left, locks):
    if not locks:
        monkeypatch.setattr(ownership.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("not here")))
    for round in range(10):
        folder = tmp_path / str(round)
        if left:
            leave_lock(folder, started="1")
        start, over, got = threading.Barrier(8), threading.Barrier(8), []

        def contend(folder=folder, start=start, over=over, got=got):
            start.wait()
            with contextlib.ExitStack() as stack:
                owner = None
                with contextlib.suppress(UserError):
                    owner = stack.enter_context(owned(folder, lambda _: None))
                over.wait(60)
                with contextlib.suppress(UserError):
                    if owner is not None:
                        owner.check()  # before it writes
                        got.append(owner)
                over.wait(60)

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="adapter_path: .*file/adapters cannot be written"):
        take(tmp_path / "file" / "adapters")
