"""MLX-LoRA-Studio: the interpreter that is written for it, driven by a stand-in of its runner."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.tools import studio
from tests.conftest import write_pairs
from tests.paths import ROOT

HOOK = ROOT / "mlx_lm_lora_prefplus/host/startup/_mlx_lm_lora_prefplus_hook.py"
pytestmark = pytest.mark.slow

START_UP = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_hook_of_this_test", {str(HOOK)!r})
hook = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hook)
hook.install()
"""
"""What the `.pth` line does, so that these tests need no fresh installation."""

TRAIN_KEYS = {
    "iteration", "train_loss", "train_chosen_reward", "train_rejected_reward", "train_accuracies", "train_margins",
    "train_policy_rejected_logps", "train_policy_chosen_logps", "train_rejected_logits_mean",
    "train_chosen_logits_mean", "learning_rate", "iterations_per_second", "tokens_per_second", "trained_tokens",
    "peak_memory",
}  # fmt: skip

FORM = {
    "model_family": "text", "train": True, "train_type": "lora", "train_mode": "dpo", "optimizer": "adamw", "seed": 0,
    "num_layers": 16, "batch_size": 1, "gradient_accumulation_steps": 1, "val_batches": 2, "learning_rate": 1e-4,
    "steps_per_report": 5, "steps_per_eval": 200, "save_every": 100, "test": True, "test_batches": 100,
    "max_seq_length": 256, "grad_checkpoint": True, "efficient_long_context": False, "seq_step_size": 512,
    "mask_prompt": False, "fuse": True, "fuse_dequantize": True, "fuse_remove_adapters": True, "beta": 0.1,
    "reward_scaling": 1.0, "dpo_cpo_loss_type": "sigmoid", "delta": 50.0, "group_size": 4, "epsilon": 0.0001,
    "max_completion_length": 512, "temperature": 0.8, "top_p": 0.95, "top_k": 20, "min_p": 0.0,
    "grpo_loss_type": "grpo", "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}, "load_in_4bits": False,
    "qat_enable": False, "qat_bits": 8, "qat_group_size": 64, "qat_mode": "affine", "qat_start_step": 1,
    "qat_interval": 1, "iters": 8, "epochs": None, "vlm_dequantize": True, "alpha": "0.00001",
}  # fmt: skip
"""The app's defaults, as its form writes them into a spec, with fewer iterations."""

REAL = os.environ.get("MLX_LORA_STUDIO")
"""The folder of the app's repository, where it is at hand: then its own runner is run as well."""


class App:
    """The app: its folder with a host of its own, the chosen interpreter, and runs."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model = folder, model
        self.backend = folder / "My App" / "Backend"
        self.vendor = folder / "My App" / "vendor"
        (self.vendor / "mlx_lm_lora").mkdir(parents=True)
        (self.vendor / "mlx_lm_lora/__init__.py").write_text("raise ImportError('the host of the app')\n")
        self.backend.mkdir()
        self.runner = Path(__file__).parent / "studio_runner.py"
        start = folder / "start"
        start.mkdir()
        (start / "sitecustomize.py").write_text(START_UP)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MLX_LM_LORA_PREFPLUS")}
        self.environment = {
            **clean,
            "PYTHONPATH": os.pathsep.join(map(str, (self.vendor, start, ROOT))),
            "MLX_LM_LORA_PREFPLUS_CACHE": str(folder / "cache"),
        }
        write_pairs(folder / "data", train=12, valid=4, test=4)

    def start(self, python: Path | str, **spec) -> subprocess.Popen:
        file = self.folder / "run_spec.json"
        adapters = str(self.folder / "adapters")
        whole = {**FORM, "model": str(self.model), "data": str(self.folder / "data"), "adapter_path": adapters}
        file.write_text(json.dumps({**whole, **spec}))
        runner = shutil.copy(self.runner, self.backend / "training_runner.py")
        command = [str(python), str(runner), "--spec", str(file)]
        variables = {**self.environment, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables, cwd=self.folder
        )

    def run(self, python: Path | str, **spec) -> "Said":
        out, _ = (process := self.start(python, **spec)).communicate(timeout=300)
        return Said(out, process.returncode)


class Said:
    """What a run told the app. metrics: event → its payloads. lines: all other lines."""

    def __init__(self, out: str, returncode: int):
        self.out, self.returncode = out, returncode
        sent = [line for line in out.splitlines() if line.startswith("@@studio_metric ")]
        read = [json.loads(line.partition(" ")[2], parse_constant=pytest.fail) for line in sent]
        self.metrics = {kind: [one for one in read if one["event"] == kind] for kind in ("train", "validation", "test")}
        self.lines = [line for line in out.splitlines() if line not in sent]

    @property
    def ours(self) -> list[str]:
        return [line for line in self.lines if line.startswith("[prefplus] ")]

    @property
    def completed(self) -> bool:
        return self.returncode == 0 and "[Studio] Run complete" in self.out


@pytest.fixture
def app(tmp_path, model_folder, monkeypatch):
    made = App(tmp_path, model_folder)
    for key in [*os.environ]:
        if key.startswith("MLX_LM_LORA_PREFPLUS"):
            monkeypatch.delenv(key)
    for key, value in made.environment.items():
        monkeypatch.setenv(key, value)
    return made


@pytest.fixture
def python(app):
    return studio.write_interpreter(app.folder / "chosen here").python


def test_the_apps_own_host_is_what_runs_without_us(app):
    assert "ImportError: the host of the app" in app.run(sys.executable).out


RUNS = [("dpo", "adamw"), ("cpo", "sgd"), ("orpo", "adafactor")]


@pytest.mark.parametrize("runner", ["stand-in", "real"])
@pytest.mark.parametrize(("mode", "optimizer"), RUNS)
def test_a_run_of_the_apps_defaults(app, python, mode, optimizer, runner):
    if runner == "real":
        if not REAL:
            pytest.skip("MLX_LORA_STUDIO names no folder of the app")
        app.runner = Path(REAL) / "Backend" / "training_runner.py"
    said = app.run(python, train_mode=mode, optimizer=optimizer)
    assert said.completed, said.out
    assert [one["iteration"] for one in said.metrics["train"]] == [5, 8]
    assert said.metrics["validation"][0]["iteration"] == 1
    if mode == "dpo":
        assert said.metrics["validation"][0]["val_loss"] == pytest.approx(math.log(2), rel=1e-6)
        assert any("Reference: the model with its adapters off" in line for line in said.ours)
    for words in ("is run by mlx-lm-lora-prefplus", "Objective: ", "Rows, train: 12 of 12", "Rows, valid: 4 of 4"):
        assert any(words in line for line in said.ours), words
    assert len(said.metrics["test"]) == 1
    trained = said.metrics["train"] + said.metrics["validation"]
    assert all(set(one) >= TRAIN_KEYS for one in said.metrics["train"])
    assert all({"val_chosen_r", "val_rejected_r", "val_loss", "val_time"} <= set(one) for one in trained[2:])
    assert all(math.isfinite(value) for one in trained for value in one.values() if not isinstance(value, str))
    assert (app.folder / "adapters/model.safetensors").is_file()  # fused; the app then removes the adapters


def test_no_line_of_ours_is_taken_for_a_metric(app, python):
    """What the app takes for a report, a memory figure, a rule or progress is said by nothing of ours."""
    (python.parent / "prefplus.yaml").write_text("loss_typ: ipo\nlearning_rate: 1\nsave_best: loss\n")
    said = app.run(python, test=False, fuse=False)
    assert any("Warning: " in line and "_typ" in line for line in said.ours)
    assert any("Best objective (lower is better) so far" in line for line in said.ours)
    for line in said.ours:
        assert not any(word in line.lower() for word in ("loss", "it/s", "peak mem", "peak_mem", "memory:")), line
        assert not re.search(r"\d\s*/\s*\d", line), line


@pytest.mark.parametrize("mode", ["simpo", "kto"])
def test_a_mode_that_the_app_cannot_train_is_refused_in_words(app, python, mode):
    said = app.run(python, train_mode=mode)
    assert said.returncode == 1 and "Training started" not in said.out
    assert f"Run failed: UserError: train_mode {mode}: this program trains only dpo, cpo, orpo. Instead, " in said.out
    assert ("loss_type: simpo" if mode == "simpo" else f"--train-mode {mode}") in said.out


def test_stop_and_resume(app, python):
    """Pause is SIGSTOP, stop is SIGTERM. What was trained is in the numbered file that the app resumes from."""
    often = {"save_every": 4, "steps_per_report": 2, "test": False, "fuse": False}
    process = app.start(python, iters=100_000, **often)
    for line in process.stdout:
        if '"iteration": 8' in line:
            break
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, out
    assert "Traceback" not in out
    numbers = sorted(int(file.name[:7]) for file in (app.folder / "adapters").glob("0*_adapters.safetensors"))
    stopped = int(re.search(r"Stopped by SIGTERM after iteration (\d+)", out)[1])
    assert numbers[-1] == stopped >= 8
    last = app.folder / f"adapters/{stopped:07d}_adapters.safetensors"
    assert last.read_bytes() == (app.folder / "adapters/adapters.safetensors").read_bytes()

    said = app.run(python, iters=4, resume_adapter_file=str(last), **often)
    assert f"Resuming adapter weights from {last}" in said.out and said.completed
    assert said.metrics["validation"][0]["val_loss"] != pytest.approx(math.log(2), rel=1e-2)


def test_an_error_says_it_all(app, python):
    (python.parent / "prefplus.yaml").write_text("label_smoothing: 0.9\n")
    out = app.run(python).out
    assert "label_smoothing: 0.9" in out and "less than 0.5" in out


def test_options_of_the_side_files(app, python):
    options = python.parent / "prefplus.yaml"
    assert "max_grad_norm" in options.read_text()
    form = {"train_mode": "cpo", "test": False, "fuse": False, "iters": 2}
    first = lambda said: said.metrics["validation"][0]["val_loss"]  # noqa: E731
    options.write_text("loss_type: simpo\n")
    for_all = first(app.run(python, **form))
    (app.folder / "adapters").mkdir(exist_ok=True)
    (app.folder / "adapters/prefplus.yaml").write_text("simpo_gamma: 3.0\n")
    both = first(app.run(python, **form))
    assert both > for_all + 0.5, "simpo_gamma is an option of simpo alone"
    studio.write_interpreter(python.parent)
    assert options.read_text() == "loss_type: simpo\n"  # what the user wrote stays


def test_the_interpreter_is_a_plain_one_otherwise(app, python):
    def run(*words, **variables):
        done = subprocess.run(
            [python, *words], capture_output=True, text=True, check=True, env={**app.environment, **variables}
        )
        return done.stdout.strip()

    assert run("-c", "import sys; print(sys.prefix)") == sys.prefix
    assert run("-c", "import sys; print(sys.argv)", "a b", "*") == "['-c', 'a b', '*']"
    kept = run("-c", "import os; print(os.environ.get('PYTHONPATH'))")
    assert kept == app.environment["PYTHONPATH"].partition(os.pathsep)[2]
    assert run("-S", "-c", "import os; print(os.environ.get('PYTHONPATH'))", PYTHONPATH=str(app.vendor)) == "None"


def test_an_interpreter_that_would_not_work_is_told(app, monkeypatch):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS", "0")
    with pytest.raises(UserError, match="does not use this package: the start-up hook did not run"):
        studio.write_interpreter(app.folder / "x")


def test_the_command(app):
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lm_lora_prefplus", "studio", "here"],
        capture_output=True,
        text=True,
        cwd=app.folder,
        env={**app.environment, "PYTHONPATH": app.environment["PYTHONPATH"].partition(os.pathsep)[2]},
    )
    assert done.returncode == 0, done.stderr
    python = app.folder / "here/python3"
    assert f"Written: {python}" in done.stdout and "choose this file as the Python interpreter" in done.stdout
    assert os.access(python, os.X_OK) and (app.folder / "here/prefplus.yaml").is_file()
