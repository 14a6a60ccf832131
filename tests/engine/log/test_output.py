"""Printing never fails, and the log has what was printed."""

import io
import sys

import pytest
from tqdm import tqdm

from mlx_lm_lora_prefplus.engine.files.names import LOG
from mlx_lm_lora_prefplus.engine.log.notices import show
from mlx_lm_lora_prefplus.engine.log.output import Output, command_output, original, recorded
from mlx_lm_lora_prefplus.errors import UserError


class Broken(io.StringIO):
    """A stream that fails when something is written, or when it is flushed."""

    def __init__(self, error: Exception, when: str = "write"):
        super().__init__()
        self.error, self.when = error, when

    def write(self, text):
        if self.when == "write":
            raise self.error
        return len(text)

    def flush(self):
        raise self.error


class Least:
    """What MLX-LoRA-Studio's runner puts in the place of stdout."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


ERRORS = [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), OSError(5, "Input/output error")]


@pytest.mark.parametrize("when", ["write", "flush"])
@pytest.mark.parametrize("error", [*ERRORS, ValueError("I/O operation on closed file")], ids=str)
def test_what_cannot_be_printed_is_in_the_log(tmp_path, monkeypatch, error, when):
    monkeypatch.setattr(sys, "stdout", Broken(error, when))
    monkeypatch.setattr(sys, "stderr", heard := io.StringIO())
    with recorded() as log:
        print("before", flush=True)
        log.open(tmp_path)
        with tqdm(total=2) as bar:
            bar.update()
            tqdm.write("\x1b[92mIter 1: loss 0.5\x1b[0m")
        print("after", flush=True)
    first, *said = (tmp_path / LOG).read_text().splitlines()
    assert first.startswith("--- 20") and said == ["before", "Iter 1: loss 0.5", "after"]
    assert heard.getvalue().count(f"Output can no longer be printed ({error})") == 1


@pytest.mark.parametrize("streams", [(None, None), (Broken(ERRORS[0]), Broken(ERRORS[0]))], ids=["none", "broken"])
def test_without_stdout_and_stderr(tmp_path, monkeypatch, streams):
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with command_output(), recorded() as log:
        log.open(tmp_path)
        print("said")
        with tqdm(total=1) as bar:
            bar.update()
            tqdm.write("beside the bar")
    assert (sys.stdout, sys.stderr) == streams
    assert (tmp_path / LOG).read_text().splitlines()[1:] == ["said", "beside the bar"]


def test_the_error_that_ends_a_run_is_in_the_log(tmp_path):
    with pytest.raises(UserError), recorded() as log:
        log.open(tmp_path)
        raise UserError("Too bad.")
    with pytest.raises(KeyError), recorded() as log:
        log.open(tmp_path)
        raise KeyError("a defect")
    said = (tmp_path / LOG).read_text()
    assert "[ERROR] Too bad.\n--- 20" in said and said.endswith("KeyError: 'a defect'\n")


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    (tmp_path / LOG).mkdir()
    with recorded() as log:
        log.open(tmp_path)
        print("said")
        log._file = Broken(ERRORS[1])
        print("said too")
    assert capsys.readouterr().out == "said\nsaid too\n"


def test_characters_that_a_stream_does_not_have(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with recorded():
        print("β 0.1")
        sys.stdout.flush()
    assert raw.getvalue() == b"? 0.1\n"


def test_a_stream_with_write_and_flush_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", least := Least())
    with recorded(), tqdm(total=1):
        tqdm.write("said")
    assert "said\n" in least.text and sys.stdout is least


def test_a_callback_on_the_present_stdout_gets_a_line_once(monkeypatch):
    class Callback:
        stream = Least()

    monkeypatch.setattr(sys, "stdout", Callback.stream)
    with recorded():
        assert original(sys.stdout) is Callback.stream and isinstance(sys.stdout, Output)
        show(Callback(), "a line")
    assert Callback.stream.text == ""
    Callback.stream = Broken(ERRORS[0])
    show(Callback(), "a line")
