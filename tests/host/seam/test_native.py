"""The patch of docs/upstream, applied to a copy of the installed host: it finds our modes, and we wrap nothing."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from tests.conftest import write_pairs
from tests.host.tools.test_studio import START_UP
from tests.paths import ROOT

PATCH = ROOT / "docs/upstream/native-discovery.patch"
GROUP = "[mlx_lm_lora.trainers]\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="git applies the patch"),
    pytest.mark.skipif(not version("mlx-lm-lora").startswith("5.10."), reason="the patch is for 5.10"),
]


class Native:
    """A folder with the patched host, found before the installed one, and what plugins announce."""

    def __init__(self, folder: Path):
        self.folder = folder
        installed = Path(str(distribution("mlx-lm-lora").locate_file("mlx_lm_lora")))
        shutil.copytree(installed, folder / "mlx_lm_lora", ignore=shutil.ignore_patterns("__pycache__"))
        command = ["git", "apply", "--include=mlx_lm_lora/*", str(PATCH)]
        subprocess.run(
            command, cwd=folder, check=True, env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
        )
        self.announce("mlx_lm_lora_prefplus", "prefplus = mlx_lm_lora_prefplus.host.seam.native")
        (folder / "sitecustomize.py").write_text(START_UP)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MLX_LM_LORA_PREFPLUS")}
        self.environment = {
            **clean,
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "MLX_LM_LORA_PREFPLUS": "strict",
            "MLX_LM_LORA_PREFPLUS_CACHE": str(folder / "cache"),
        }
        write_pairs(folder / "data", train=8, valid=2)

    def announce(self, package: str, *entries: str) -> None:
        info = self.folder / f"{package}-0.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 0.3\n")
        (info / "entry_points.txt").write_text(GROUP + "\n".join(entries) + "\n")

    def run(self, *words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=self.environment)

    def evaluated(self, code: str):
        done = self.run("-c", f"import json, mlx_lm_lora.train as host\n{code}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def native(tmp_path):
    return Native(tmp_path)


@pytest.fixture
def training(native, model_folder):
    """The words of a short run."""
    words = ["--train", "--model", model_folder, "--data", "data", "--iters", "2", "--batch-size", "2", "--no-fuse"]
    return [*words, "--learning-rate", "1e-3", "--steps-per-report", "1", "--adapter-path", "adapters"]


def test_nothing_is_wrapped_and_our_modes_are_there(native):
    found = native.evaluated(
        "from mlx_lm_lora_prefplus.host.seam.install import MARK, WRAPPED, is_active\n"
        "names = [name for name in WRAPPED['mlx_lm_lora.train'] if hasattr(getattr(host, name), '__wrapped__')]\n"
        "modes = list(host.train_modes())\n"
        "print(json.dumps([host.__file__, host.TRAINER_PLUGIN_API, is_active(host), names, modes]))"
    )
    assert found[0] == str(native.folder / "mlx_lm_lora/train.py")
    assert found[1:4] == [1, False, []]
    assert set(found[4]) == {"dpo", "cpo", "orpo", "simpo", "kto", "bco"}


@pytest.mark.parametrize(
    ("mode", "launch"), [("cpo", ["-m", "mlx_lm_lora.train"]), ("simpo", ["-m", "mlx_lm_lora", "train"])]
)
def test_a_run_from_the_command_line(native, training, mode, launch):
    done = native.run(*launch, "--train-mode", mode, "--label-smoothing", "0.1", *training)
    assert done.returncode == 0, done.stderr
    assert f"--train-mode {mode} is run by mlx-lm-lora-prefplus 0.3" in done.stdout
    assert "Iter 2: loss" in done.stdout
    assert (native.folder / "adapters/adapters.safetensors").is_file()


def test_the_mode_of_a_config_file_of_a_dict_and_of_run(native, model_folder):
    config = {
        "model": str(model_folder),
        "data": "data",
        "train": True,
        "train_mode": "simpo",
        "iters": 1,
        "fuse": False,
    }
    (native.folder / "run.yaml").write_text(json.dumps({**config, "adapter_path": "from file"}))
    assert native.run("-m", "mlx_lm_lora.train", "--config", "run.yaml").returncode == 0
    code = f"host.main({ {**config, 'adapter_path': 'from dict'}!r})\n"
    code += f"import types\nhost.run(types.SimpleNamespace(**{ {**config, 'adapter_path': 'from run'}!r}))\n"
    native.evaluated(f"{code}print(1)")
    for name in ("from file", "from dict", "from run"):
        assert (native.folder / name / "adapters.safetensors").is_file(), name


def test_our_errors_are_lines_as_ever(native):
    done = native.run("-m", "mlx_lm_lora.train", "--train-mode", "cpo", "--loss-type", "nonsense")
    assert done.returncode == 1
    assert "'nonsense' (command line) is not a loss of mode cpo" in done.stderr and "Traceback" not in done.stderr


def test_its_own_modes_are_its_own(native):
    done = native.run("-m", "mlx_lm_lora.train", "--train-mode", "sft", "--loss-type", "x")
    assert done.returncode == 2 and "unrecognized arguments: --loss-type x" in done.stderr
    helped = native.run("-m", "mlx_lm_lora.train", "--help").stdout
    assert "ppo,simpo,kto,bco}" in helped.replace("\n", "").replace(" ", "")


def test_another_plugin_without_us_and_one_that_is_broken(native):
    (native.folder / "toy.py").write_text(
        "from mlx_lm_lora.plugins import hookimpl\n"
        "class Toy:\n"
        "    def main(self, args): print('toy main', args)\n"
        "    def run(self, args, training_callback): print('toy run', args.train_mode, training_callback)\n"
        "@hookimpl\n"
        "def mlx_lm_lora_train_modes(): return {'toy': Toy()}\n"
    )
    native.announce("toy_modes", "toy = toy", "bad = not_there")
    done = native.run("-m", "mlx_lm_lora.train", "--train-mode", "toy", "--anything", "goes")
    assert "toy main None" in done.stdout and done.returncode == 0
    assert "The plugin not_there is left out: ModuleNotFoundError" in done.stdout
    code = "import mlx_lm_lora.train as t, types; t.run(types.SimpleNamespace(train_mode='toy'), 7)"
    assert "toy run toy 7" in native.run("-c", code).stdout


def test_a_mode_of_two_plugins_is_left_out_and_named(native):
    for name in ("one", "two"):
        (native.folder / f"{name}.py").write_text(
            "from mlx_lm_lora.plugins import hookimpl\n"
            "@hookimpl\n"
            "def mlx_lm_lora_train_modes(): return {'toy': object()}\n"
        )
        native.announce(name, f"{name} = {name}")
    done = native.run("-m", "mlx_lm_lora.train", "--train-mode", "toy")
    assert done.returncode == 2 and "invalid choice: 'toy'" in done.stderr
    assert "Train mode toy of one and two is left out" in done.stdout


def test_packages_written_for_our_trainers_work_through_it(native, training):
    shutil.copy(ROOT / "tests/plugin/example_package/mlx_lm_lora_slic.py", native.folder)
    native.announce("mlx_lm_lora_slic", "slic = mlx_lm_lora_slic")
    done = native.run("-m", "mlx_lm_lora.train", "--train-mode", "slic", "--slack", "2.0", *training)
    assert done.returncode == 0, done.stderr
    assert "--train-mode slic is run by mlx-lm-lora-slic 0.3" in done.stdout


def test_the_doctor_knows(native):
    report = json.loads(native.run("-m", "mlx_lm_lora_prefplus", "doctor", "--json").stdout)
    assert report["active"] and report["native"]
