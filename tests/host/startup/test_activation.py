"""The built wheel in throw-away environments: every way that people start the host, and every way it can go wrong.

An environment sees the packages of the running one through a `.pth` file, so nothing is downloaded; our wheel
and the host (packed again from what is installed) are installed into it for real.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.conftest import write_pairs
from tests.paths import ROOT

OURS, HOST = "mlx-lm-lora-prefplus", "mlx-lm-lora"
NONSENSE = ("--train-mode", "cpo", "--loss-type", "nonsense")
OUR_ERROR = "'nonsense' (command line) is not a loss of mode cpo"
THEIR_ERROR = "unrecognized arguments: --loss-type nonsense"
FROM_PYTHON = f"import sys; sys.argv[1:] = {list(NONSENSE)}; from mlx_lm_lora.train import main; main()"

pytestmark = pytest.mark.slow


class Environment:
    """A virtual environment in which packages can be installed and removed without a network."""

    def __init__(self, path: Path):
        venv.create(path, with_pip=False, symlinks=True)
        self.path, self.bin = path, path / "bin"
        self.python = self.bin / "python"
        self.packages = next((path / "lib").glob("python*")) / "site-packages"
        seen = [folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))]
        (self.packages / "_running_environment.pth").write_text("\n".join(seen) + "\n")

    def pip(self, *words: object) -> None:
        """Run uv's pip or, where there is no uv, pip, on this environment."""
        uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
        if uv:
            tool = [
                uv,
                "pip",
                words[0],
                "--python",
                self.python,
                "--offline",
                *(["--no-deps"] * (words[0] == "install")),
            ]
        else:
            tool = [sys.executable, "-m", "pip", "--python", self.python, words[0]]
            tool += ["--no-deps", "--no-index", "--ignore-installed"] if words[0] == "install" else ["--yes"]
        done = subprocess.run([*map(str, [*tool, *words[1:]])], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run(self, *command: object, **environment: str) -> subprocess.CompletedProcess:
        """Run a command outside the repository; `environment` is added to the variables."""
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLX_LM_LORA_PREFPLUS")}
        return subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            cwd=self.path,
            env={**clean, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        )

    def files(self) -> dict[str, str]:
        """Every file of the environment and the digest of its content."""
        return {
            str(file.relative_to(self.path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for folder in (self.packages, self.bin)
            for file in folder.rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """Our wheel, built from a copy of the repository, and the host's."""
    folder = tmp_path_factory.mktemp("wheels")
    source = copied_repository(folder / "source")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (ours,) = folder.glob("mlx_lm_lora_prefplus-*.whl")
    return {OURS: ours, HOST: packed_again(HOST, folder)}


def copied_repository(target: Path) -> Path:
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".*", "tests", "docs", "__pycache__", "quickstart/"))
    return target


def packed_again(name: str, folder: Path) -> Path:
    """The wheel of an installed package, made of what its RECORD lists."""
    found = distribution(name)
    wheel = folder / f"{name.replace('-', '_')}-{found.version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{found.version}.dist-info"
    made_by_installer = {f"{info}/{file}" for file in ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")}
    record = []
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in found.files or []:
            if ".." not in file.parts and "__pycache__" not in file.parts and str(file) not in made_by_installer:
                archive.write(str(found.locate_file(file)), str(file))
                record.append(f"{file},,")
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]) + "\n")
    return wheel


@pytest.fixture(scope="module")
def environment(wheels, tmp_path_factory) -> Environment:
    """Ours installed first, the host afterwards, so that the host's script and files are the later ones."""
    made = Environment(tmp_path_factory.mktemp("environment"))
    made.pip("install", wheels[OURS])
    made.pip("install", wheels[HOST])
    return made


LAUNCHES = {
    "console script": ("{bin}/mlx_lm_lora.train", *NONSENSE),
    "-m mlx_lm_lora.train": ("{bin}/python", "-m", "mlx_lm_lora.train", *NONSENSE),
    "-m mlx_lm_lora train": ("{bin}/python", "-m", "mlx_lm_lora", "train", *NONSENSE),
    "from mlx_lm_lora.train import main": ("{bin}/python", "-c", FROM_PYTHON),
    "-m mlx_lm_lora_prefplus train": ("{bin}/python", "-m", "mlx_lm_lora_prefplus", "train", *NONSENSE),
}


def launched(environment: Environment, launch: str, **variables: str):
    return environment.run(*(str(word).format(bin=environment.bin) for word in LAUNCHES[launch]), **variables)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_every_launch_is_ours(environment, launch):
    done = launched(environment, launch)
    assert done.returncode == 1
    assert OUR_ERROR in done.stderr
    assert "Traceback" not in done.stderr


def test_main_with_a_dict(environment):
    code = "from mlx_lm_lora.train import main; main({'train_mode': 'cpo', 'loss_type': 'nonsense'})"
    done = environment.run(environment.python, "-c", code)
    assert done.returncode == 1
    assert "mlx_lm_lora_prefplus.errors.UserError: This setting cannot work:\n" in done.stderr


def test_help_shows_our_flags_in_our_modes_only(environment):
    ours = environment.run(environment.bin / "mlx_lm_lora.train", "--train-mode", "cpo", "--help")
    theirs = environment.run(environment.bin / "mlx_lm_lora.train", "--help")
    assert (ours.returncode, ours.stderr, theirs.returncode, theirs.stderr) == (0, "", 0, "")
    assert "--loss-type" in ours.stdout.replace("-cpo-loss-type", "").replace("-sft-loss-type", "")
    assert "--label-smoothing" in ours.stdout and "--label-smoothing" not in theirs.stdout


@pytest.mark.parametrize("launch", ["console script", "-m mlx_lm_lora.train", "-m mlx_lm_lora_prefplus train"])
def test_the_switch(environment, launch):
    done = launched(environment, launch, MLX_LM_LORA_PREFPLUS="0")
    assert done.returncode == 2
    assert THEIR_ERROR in done.stderr and "prefplus]" not in done.stderr


def test_an_unsupported_host(environment, tmp_path):
    info = tmp_path / "mlx_lm_lora-6.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx-lm-lora\nVersion: 6.0.0\n")
    done = launched(environment, "console script", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert THEIR_ERROR in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("[mlx-lm-lora-prefplus]")]
    assert len(said) == 1 and "6.0.0 is installed; the host runs unchanged. Install a supported host: " in said[0]
    assert said[0].endswith("-m pip install 'mlx-lm-lora>=5.10,<6'")


def test_a_third_partys_mode(environment, tmp_path):
    info = tmp_path / "toy_prefs-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-prefs\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[mlx_lm_lora.trainers]\ntoy = toy_prefs\nbad = not_there\n")
    (tmp_path / "toy_prefs.py").write_text(
        "import dataclasses\n"
        "from mlx_lm_lora_prefplus.plugin import hookimpl\n"
        "from mlx_lm_lora_prefplus.trainers import CPO\n"
        "@hookimpl\n"
        "def mlx_lm_lora_register_trainers():\n"
        "    return [dataclasses.replace(CPO, mode='toy')]\n"
    )
    variables = {"PYTHONPATH": str(tmp_path)}
    words = ("--train-mode", "toy", "--loss-type", "nonsense")
    done = environment.run(environment.bin / "mlx_lm_lora.train", *words, **variables)
    assert "is not a loss of mode toy" in done.stderr
    assert "the plugin toy-prefs 0.3 is skipped: not_there: ModuleNotFoundError" in done.stderr
    listed = environment.run(environment.bin / "mlx_lm_lora.prefplus", "modes", "--json", **variables)
    assert {row["mode"]: row["provider"] for row in json.loads(listed.stdout)}["toy"] == "toy-prefs 0.3"


def test_the_worked_example_is_installed_and_trained(environment, model_folder, tmp_path):
    """The package of docs/write-a-trainer.md: its wheel installed, its mode trained, gone after uninstalling."""
    source = shutil.copytree(ROOT / "tests/plugin/example_package", tmp_path / "source")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    environment.pip("install", *tmp_path.glob("*.whl"))
    write_pairs(tmp_path / "data", train=8, valid=2)
    train = [environment.bin / "mlx_lm_lora.train", "--train", "--train-mode", "slic", "--slack", "2.0", "--no-fuse"]
    train += ["--model", model_folder, "--data", tmp_path / "data", "--iters", "3", "--batch-size", "4"]
    train += ["--learning-rate", "1e-3", "--adapter-path", tmp_path / "adapters"]
    try:
        done = environment.run(*train)
        refused = environment.run(*train, "--slack", "-1")
    finally:
        environment.pip("uninstall", "mlx-lm-lora-slic")
    assert done.returncode == 0, done.stderr
    assert "Objective: slic (beta 0.1, slack 2.0, nll_weight 0.1)" in done.stdout
    assert "Iter 3: Val loss" in done.stdout
    assert (tmp_path / "adapters/adapters.safetensors").is_file()
    assert refused.returncode == 1 and "slack" in refused.stderr and "Traceback" not in refused.stderr
    assert "train_mode: 'slic' (command line) is not a mode" in environment.run(*train).stderr


def test_doctor(environment):
    command = (environment.bin / "mlx_lm_lora.prefplus", "doctor", "--json")
    fine = environment.run(*command)
    report = json.loads(fine.stdout)
    assert (fine.returncode, report["active"], report["problems"]) == (0, True, [])
    assert Path(report["files"]["pth"]).parent == environment.packages
    off = environment.run(*command, MLX_LM_LORA_PREFPLUS="0")
    assert off.returncode == 1
    assert "MLX_LM_LORA_PREFPLUS=0" in json.loads(off.stdout)["problems"][0]["what"]


def test_the_host_again_and_our_way_out(wheels, tmp_path):
    made = Environment(tmp_path / "environment")
    made.pip("install", wheels[HOST])
    before = made.files()
    made.pip("install", wheels[OURS])
    with_us = made.files()
    assert {file: with_us[file] for file in before} == before
    assert OUR_ERROR in launched(made, "console script").stderr

    made.pip("uninstall", HOST)
    made.pip("install", wheels[HOST])
    assert OUR_ERROR in launched(made, "console script").stderr

    made.pip("uninstall", OURS)
    assert made.files() == before
    done = launched(made, "console script")
    assert done.returncode == 2
    assert THEIR_ERROR in done.stderr and "prefplus]" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("editables") is None, reason="hatchling needs editables for this")
def test_an_editable_install(wheels, tmp_path):
    made = Environment(tmp_path / "environment")
    made.pip("install", wheels[HOST])
    before = made.files()
    source = copied_repository(tmp_path / "source")
    made.pip("install", "--no-build-isolation", "-e", source)
    for launch in ("console script", "-m mlx_lm_lora.train"):
        assert OUR_ERROR in launched(made, launch).stderr
    where = made.run(made.python, "-c", "import mlx_lm_lora_prefplus as p; print(p.__file__)").stdout
    assert Path(where.strip()).is_relative_to(source)
    made.pip("uninstall", OURS)
    assert made.files() == before
