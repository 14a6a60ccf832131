"""Errors about files say what failed, where and what to do; only a full disk asks for space."""

import errno

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.storage import failures
from mlx_lm_lora_prefplus.storage.atomic import RESUME, explained, whole_file


@pytest.mark.parametrize("number", sorted(failures.ADVICE))
def test_only_a_full_disk_asks_for_space(tmp_path, number):
    error = OSError(number, "as the system says it")
    with pytest.raises(UserError) as caught, whole_file(tmp_path / "a.json", RESUME):
        raise error
    text = str(caught.value)
    assert text.startswith(
        f"Could not write {tmp_path / 'a.json'}: as the system says it. Files saved earlier are intact."
    )
    assert ("Free some space" in text) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert text.endswith(f"{failures.advice(error)}. {RESUME}")


def test_what_a_library_does_not_say_the_system_does(tmp_path, monkeypatch):
    """MLX says only that so many bytes could not be written."""

    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(failures.tempfile, "TemporaryFile", full)
    told = r"a\.json: No space left on device\. .*Free some space on the disk\.$"
    with pytest.raises(UserError, match=told), whole_file(tmp_path / "a.json") as file:
        file.write_bytes(b"half")
        raise RuntimeError("[write] Unable to write 3223 bytes to file.")
    assert list(tmp_path.iterdir()) == []


def test_a_library_whose_error_is_no_error_of_the_disk_is_quoted(tmp_path):
    told = r"a\.json: no such array\. .*Correct the cause"
    with pytest.raises(UserError, match=told), whole_file(tmp_path / "a.json"):
        raise RuntimeError("no such array")


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "a.json").mkdir()
    told = r"a\.json: Is a directory\. .*A folder has the name of the file: move the folder away"
    with pytest.raises(UserError, match=told), whole_file(tmp_path / "a.json") as file:
        file.write_text("{}")
    with pytest.raises(UserError, match=told), explained(tmp_path / "a.json"):
        (tmp_path / "a.json").open("a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.json") as file:
        file.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
