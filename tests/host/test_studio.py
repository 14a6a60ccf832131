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
from mlx_lm_lora_prefplus.host import studio
from tests.conftest import write_pairs

ROOT = Path(__file__).parents[2]
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


class App:
    """The app: its folder with a host of its own, the chosen interpreter, and runs."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model = folder, model
        self.backend = folder / "My App" / "Backend"
        self.vendor = folder / "My App" / "vendor"
        (self.vendor / "mlx_lm_lora").mkdir(parents=True)
        (self.vendor / "mlx_lm_lora/__init__.py").write_text("raise ImportError('the host of the app')\n")
        self.backend.mkdir()
        shutil.copy(Path(__file__).parent / "studio_runner.py", self.backend / "training_runner.py")
        start = folder / "start"
        start.mkdir()
        (start / "sitecustomize.py").write_text(START_UP)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MLX_LM_LORA_PREFPLUS")}
        self.environment = {
            **clean,
            "PYTHONPATH": os.pathsep.join(map(str, (self.vendor, start, ROOT))),
            "MLX_LM_LORA_PREFPLUS_CACHE": str(folder / "cache"),
        }
        write_pairs(folder / "data", train=12, valid=4)

    def start(self, python: Path | str, **spec) -> subprocess.Popen:
        file = self.folder / "run_spec.json"
        adapters = str(self.folder / "adapters")
        whole = {"model": str(self.model), "data": str(self.folder / "data"), "adapter_path": adapters, "iters": 8}
        file.write_text(json.dumps({"train_mode": "dpo", **whole, **spec}))
        command = [str(python), str(self.backend / "training_runner.py"), "--spec", str(file)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment, cwd=self.folder
        )

    def run(self, python: Path | str, **spec) -> list[dict]:
        out, err = (process := self.start(python, **spec)).communicate(timeout=300)
        events = [json.loads(line) for line in out.splitlines()]
        assert process.returncode == (0 if events[-1]["event"] == "done" else 1), err
        return events


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


def of(events, kind, **more):
    return [one for one in events if one["event"] == kind and all(one[key] == value for key, value in more.items())]


def test_the_apps_own_host_is_what_runs_without_us(app):
    assert of(app.run(sys.executable), "error")[0]["message"] == "the host of the app"


@pytest.mark.parametrize("mode", ["dpo", "cpo", "orpo"])
def test_a_run_of_the_app(app, python, mode):
    events = app.run(python, train_mode=mode)
    assert not of(events, "error")
    assert not Path(of(events, "host")[0]["file"]).is_relative_to(app.folder)
    logs = [one["line"] for one in of(events, "log")]
    assert any(f"train_{mode} is run by mlx-lm-lora-prefplus" in line for line in logs)

    train = [one["payload"] for one in of(events, "payload", of="train")]
    valid = [one["payload"] for one in of(events, "payload", of="valid")]
    assert [one["iteration"] for one in train] == [2, 4, 6, 8]
    assert [one["iteration"] for one in valid] == [1, 4, 8]
    assert all(set(one) == TRAIN_KEYS for one in train)
    assert all({"val_chosen_r", "val_rejected_r", "val_loss", "val_time"} <= set(one) for one in valid)
    assert all(math.isfinite(value) for one in train + valid for value in one.values())

    names = {file.name for file in (app.folder / "adapters").glob("*.safetensors")}
    assert {"adapters.safetensors", "0000004_adapters.safetensors", "0000008_adapters.safetensors"} == names


def test_no_stray_lines(app, python):
    """What the app takes for a report, a memory figure, a rule or progress is said by nothing else."""
    (python.parent / "prefplus.yaml").write_text("loss_typ: ipo\nlearning_rate: 1\nsave_best: loss\n")
    logs = [one["line"] for one in of(app.run(python), "log")]
    told = [line for line in logs if not re.match(r"Training: |Iter \d+: (loss|Val loss) ", line.strip())]
    assert any("loss_typ" in line or "objective_typ" in line for line in told)
    for line in told:
        assert not any(word in line for word in ("loss", "it/s", "peak mem", "memory:")), line
        assert not line.startswith("=======") and not re.search(r"\b\d+/\d+\b", line), line


def test_stop_and_resume(app, python):
    """Stop is SIGTERM. What was trained is in the numbered file that the app resumes from."""
    process = app.start(python, iters=100_000)
    for line in process.stdout:
        if "0000008_adapters" in line:
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    numbers = sorted(int(file.name[:7]) for file in (app.folder / "adapters").glob("0*_adapters.safetensors"))
    stopped = int(re.search(r"Stopped by SIGTERM after iteration (\d+)", out)[1])
    assert numbers[-1] == stopped >= 8
    last = app.folder / f"adapters/{stopped:07d}_adapters.safetensors"
    assert last.read_bytes() == (app.folder / "adapters/adapters.safetensors").read_bytes()

    events = app.run(python, resume=True, iters=4)
    assert of(events, "resume")[0]["file"] == str(last)
    assert of(events, "payload", of="valid")[0]["payload"]["val_loss"] != pytest.approx(math.log(2), rel=1e-2)


def test_an_error_says_it_all(app, python):
    (python.parent / "prefplus.yaml").write_text("label_smoothing: 0.9\n")
    message = of(app.run(python), "error")[0]["message"]
    assert "label_smoothing: 0.9" in message and "less than 0.5" in message


def test_options_of_the_side_files(app, python):
    options = python.parent / "prefplus.yaml"
    assert "max_grad_norm" in options.read_text()
    first = lambda events: of(events, "payload", of="valid")[0]["payload"]["val_loss"]  # noqa: E731
    plain = first(app.run(python, train_mode="cpo"))
    options.write_text("loss_type: simpo\n")
    for_all = first(app.run(python, train_mode="cpo"))
    (app.folder / "adapters/prefplus.yaml").write_text("simpo_gamma: 3.0\n")
    both = first(app.run(python, train_mode="cpo"))
    assert len({round(value, 3) for value in (plain, for_all, both)}) == 3
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
    with pytest.raises(UserError, match="does not use our functions: the start-up hook did not run"):
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
