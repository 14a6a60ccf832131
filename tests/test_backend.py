"""mlx without a backend, as `pip install mlx` alone leaves it on Linux: one line with what to install, no traceback."""

import importlib
import os
import subprocess
import sys
import sysconfig

import pytest

from mlx_lm_lora_prefplus import backend
from mlx_lm_lora_prefplus.host import dropin
from tests.paths import ROOT

STARTUP = ROOT / "mlx_lm_lora_prefplus/host/startup"

BLOCKER = """
import sys

class WithoutBackend:
    def find_spec(self, name, path=None, target=None):
        if name == "mlx.core":
            raise ImportError("libmlx.so: cannot open shared object file: No such file or directory", name=name)

sys.meta_path.insert(0, WithoutBackend())
"""

COMPANION = "from mlx_lm_lora_prefplus.cli import main; main()"
HOST = "import _mlx_lm_lora_prefplus_hook as hook; hook.install(); from mlx_lm_lora.train import main; main()"


@pytest.fixture
def without(tmp_path):
    """Run Python code with these words behind the program's name, where mlx has no backend."""
    (tmp_path / "blocker.py").write_text(BLOCKER)
    paths = [tmp_path, STARTUP, ROOT, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]

    def run(code: str, *words: str) -> subprocess.CompletedProcess:
        code = f"import sys, blocker; sys.argv = {list(words)!r}; {code}"
        environment = {
            **{key: value for key, value in os.environ.items() if key != "MLX_LM_LORA_PREFPLUS"},
            **{"PYTHONPATH": os.pathsep.join(map(str, paths)), "MLX_LM_LORA_PREFPLUS_CACHE": str(tmp_path / "cache")},
        }
        return subprocess.run(
            [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
        )

    return run


@pytest.mark.parametrize(
    "words", [["check", "a.yaml"], ["quickstart"], ["bench"], ["evaluate", "a.yaml"]], ids=lambda words: words[0]
)
def test_commands_that_compute_say_what_to_install_(without, words):
    ended = without(COMPANION, "mlx_lm_lora.prefplus", *words)
    assert ended.returncode == 1 and not ended.stdout
    line = " ".join(ended.stderr.split())
    assert line.startswith("[ERROR] mlx does not start: it has no backend for this machine (libmlx.so: cannot open")
    assert "pip install" in line and backend.advice() in line


@pytest.mark.parametrize("words", [["--train-mode", "dpo"], ["--help"], ["--config", "a.yaml", "--train-mode", "sft"]])
def test_the_hosts_command_says_it_too(without, words):
    ended = without(HOST, "/somewhere/bin/mlx_lm_lora.train", *words)
    assert ended.returncode == 1 and not ended.stdout
    (line,) = ended.stderr.splitlines()
    assert line.startswith("[ERROR] mlx does not start") and "pip install" in line


def test_the_module_said_to_run_as_a_program_says_it_too(without):
    code = "from mlx_lm_lora_prefplus.__main__ import main; main()"
    ended = without(code, "mlx_lm_lora_prefplus", "train", "--train-mode", "dpo")
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) <= 4 and "pip install" in ended.stderr


def test_programs_that_import_the_host_get_their_error_with_the_line_as_a_note(without):
    ended = without(HOST, "their_own.py")
    assert ended.returncode == 1 and "Traceback" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("mlx does not start")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "quickstart"),
        (["--version"], "."),
        (["losses"], "simpo"),
        (["losses", "ipo"], "fixed target"),
        (["losses", "--json"], '"formula"'),
        (["modes"], "kto"),
        (["presets"], "learning"),
        (["cache"], "0 files"),
        (["check", "--help"], "--no-forecast"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_that_need_no_arrays_work(without, words, said):
    ended = without(COMPANION, "mlx_lm_lora.prefplus", *words)
    assert ended.returncode == 0, ended.stderr
    assert said.lower() in ended.stdout.lower()


def test_report_works(without, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text('{"iteration": 1, "split": "train", "loss": 0.69}\n')
    ended = without(COMPANION, "mlx_lm_lora.prefplus", "report", "run")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run/report.html").is_file()


@pytest.mark.slow
def test_doctor_tells_it_once_with_what_to_do(without):
    ended = without(COMPANION, "mlx_lm_lora.prefplus", "doctor")
    assert not ended.stderr
    assert "problem: mlx does not start: it has no backend" in ended.stdout
    assert f"do: {backend.advice()}" in ended.stdout


def test_where_mlx_starts_nothing_is_put_in_its_place():
    import mlx.core as mx

    backend.stand_in()
    backend.require()
    assert backend.problem() is None and sys.modules["mlx.core"] is mx


@pytest.mark.parametrize(
    ("platform", "nvidia", "said"),
    [("linux", None, '"mlx[cpu]"'), ("linux", "/usr/bin/nvidia-smi", '"mlx[cuda13]"'), ("darwin", None, "-U mlx")],
)
def test_the_advice_fits_the_machine(monkeypatch, platform, nvidia, said):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("shutil.which", lambda _: nvidia)
    assert backend.advice().startswith(f"pip install {said}")


def test_mlx_on_cuda_does_not_stop_for_many_shapes(monkeypatch):
    monkeypatch.delenv("MLX_ENABLE_CACHE_THRASHING_CHECK", raising=False)
    monkeypatch.setenv("MLX_CUDA_GRAPH_CACHE_SIZE", "500")
    assert backend.problem() is None
    assert os.environ["MLX_ENABLE_CACHE_THRASHING_CHECK"] == "0"
    assert os.environ["MLX_CUDA_GRAPH_CACHE_SIZE"] == "500", "the user's own value stays"


def test_programs_that_import_the_training_functions_do_not_either(monkeypatch):
    """They never start the host's command."""
    for name in backend.CUDA:
        monkeypatch.delenv(name, raising=False)
    importlib.reload(dropin)
    assert backend.CUDA.items() <= os.environ.items()
