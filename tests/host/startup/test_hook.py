"""The start-up hook alone, in bare interpreters, with a host and a package that stand in for the real ones."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.paths import ROOT

STARTUP = ROOT / "mlx_lm_lora_prefplus" / "host" / "startup"
HOOK = "_mlx_lm_lora_prefplus_hook"
INSTALL = f"import {HOOK}; {HOOK}.install()"

HOST = """
print("loaded", __name__)
state = ["host"]
def main():
    print("main of", __name__, state, *__import__("sys").argv[1:])
if __name__ == "__main__":
    main()
"""
ACTIVATE = """
def activate(module):
    module.state.append("seam")
"""


@pytest.fixture
def world(tmp_path):
    """A folder with a host, our package and the hook; `run` starts an interpreter that has it and nothing else."""

    class World:
        path = tmp_path

        def write(self, name, text):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

        def run(self, *command, switch="", startup=INSTALL):
            code = f"{startup}\nimport sys, runpy\n"
            if command[0] == "-m":
                code += f"sys.argv = {[command[1], *command[2:]]!r}\nrunpy._run_module_as_main({command[1]!r})"
            else:
                code += command[1]
            return subprocess.run(
                [sys.executable, "-S", "-W", "error", "-c", code],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(tmp_path), "MLX_LM_LORA_PREFPLUS": switch},
            )

    made = World()
    made.write("mlx_lm_lora/__init__.py", "")
    made.write("mlx_lm_lora/train.py", HOST)
    made.write("mlx_lm_lora/other.py", "print('other')")
    made.write("mlx_lm_lora_prefplus/__init__.py", "")
    made.write("mlx_lm_lora_prefplus/host/__init__.py", "")
    made.write("mlx_lm_lora_prefplus/host/seam/install.py", ACTIVATE)
    made.write(f"{HOOK}.py", (STARTUP / f"{HOOK}.py").read_text())
    return made


IMPORT = ("-c", "import mlx_lm_lora.train as t; t.main()")


def test_it_activates_after_the_host_was_loaded(world):
    done = world.run(*IMPORT)
    assert (done.stdout, done.stderr) == ("loaded mlx_lm_lora.train\nmain of mlx_lm_lora.train ['host', 'seam']\n", "")


def test_as_a_module_the_host_is_loaded_once_and_main_runs_once(world):
    done = world.run("-m", "mlx_lm_lora.train", "--train")
    assert done.stdout == "loaded mlx_lm_lora.train\nmain of mlx_lm_lora.train ['host', 'seam'] --train\n"
    assert done.stderr == ""


def test_the_mcp_server_is_a_command_too(world):
    world.write("mlx_lm_lora/mcp_server.py", HOST)
    done = world.run("-m", "mlx_lm_lora.mcp_server", "--transport")
    assert done.stdout == "loaded mlx_lm_lora.mcp_server\nmain of mlx_lm_lora.mcp_server ['host', 'seam'] --transport\n"
    assert done.stderr == ""


@pytest.mark.parametrize("asked", ["", "1"])
def test_the_trainers_are_touched_where_that_is_asked_for_alone(world, monkeypatch, asked):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_PATCH", asked)
    world.write("mlx_lm_lora/trainer/__init__.py", "")
    world.write("mlx_lm_lora/trainer/dpo_trainer.py", HOST)
    world.write("mlx_lm_lora/trainer/sft_trainer.py", HOST)
    code = "from mlx_lm_lora.trainer import dpo_trainer as d, sft_trainer as s; print(d.state, s.state)"
    expected = "['host', 'seam'] ['host']" if asked else "['host'] ['host']"
    assert world.run("-c", code).stdout.splitlines()[-1] == expected
    assert world.run("-c", code, switch="0").stdout.splitlines()[-1] == "['host'] ['host']"
    done = world.run("-m", "mlx_lm_lora.trainer.dpo_trainer")
    assert (done.stdout, done.stderr) == ("loaded __main__\nmain of __main__ ['host']\n", "")


def test_a_worker_that_imports_the_main_module_does_not_run_it(world):
    done = world.run(
        "-c", "names = runpy.run_module('mlx_lm_lora.train', run_name='__mp_main__'); print(names['state'])"
    )
    assert done.stdout == "loaded mlx_lm_lora.train\n['host', 'seam']\n"


@pytest.mark.parametrize("startup", [f"{INSTALL}\n{INSTALL}", f"{INSTALL}\nimport sys\n{INSTALL}"])
def test_installing_twice_is_installing_once(world, startup):
    done = world.run(
        "-c", f"import {HOOK} as h; print(sum(isinstance(f, h.Finder) for f in sys.meta_path))", startup=startup
    )
    assert done.stdout == "1\n"
    assert "['host', 'seam']" in world.run(*IMPORT, startup=startup).stdout


def test_starting_up_imports_nothing_but_the_hook(world):
    code = f"import sys; before = set(sys.modules); {INSTALL}; print(sorted(set(sys.modules) - before))"
    assert world.run("-c", code, startup="").stdout == f"['{HOOK}']\n"


def test_other_modules_are_left_alone(world):
    done = world.run(
        "-c",
        "import mlx_lm_lora.other, json; print(type(json.__loader__).__name__, 'mlx_lm_lora.train' in sys.modules)",
    )
    assert done.stdout == "other\nSourceFileLoader False\n"


def test_the_loader_is_the_real_one_in_everything_else(world):
    done = world.run(
        "-c",
        "import importlib, inspect, pickle, mlx_lm_lora.train as t\n"
        "assert type(t.__spec__.loader).__name__ == 'Loader'\n"
        "assert 'def main' in inspect.getsource(t)\n"
        "assert t.__spec__.loader.path == t.__file__ and t.__spec__.origin == t.__file__\n"
        "assert pickle.loads(pickle.dumps(t.main)) is t.main\n"
        "importlib.reload(t)\n"
        "print(t.state)",
    )
    assert done.stdout.splitlines()[-1] == "['host', 'seam']", done.stderr


def test_the_switch_turns_it_off(world):
    for launch in (IMPORT, ("-m", "mlx_lm_lora.train")):
        done = world.run(*launch, switch="0")
        assert "['host']" in done.stdout and done.stderr == ""


def test_our_package_is_gone(world):
    shutil.rmtree(world.path / "mlx_lm_lora_prefplus" / "host")
    for _ in range(2):
        done = world.run(*IMPORT)
        assert ("['host']" in done.stdout, done.stderr) == (True, "")
        for file in (world.path / "mlx_lm_lora_prefplus").glob("*.py"):
            file.unlink()


@pytest.mark.parametrize(
    "broken",
    ["raise RuntimeError('oh no')", "import not_installed", "def activate(module): raise KeyError('oh no')", "def x(:"],
)
@pytest.mark.parametrize("launch", [IMPORT, ("-m", "mlx_lm_lora.train")])
def test_what_is_broken_on_our_side_is_a_warning(world, broken, launch):
    world.write("mlx_lm_lora_prefplus/host/seam/install.py", broken)
    done = world.run(*launch)
    assert done.returncode == 0
    assert "main of mlx_lm_lora.train ['host']" in done.stdout
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("[mlx-lm-lora-prefplus] not active (")
    strict = world.run(*launch, switch="strict")
    assert strict.returncode == 1
    assert "Traceback" in strict.stderr


def test_a_host_that_fails_fails_as_without_us(world):
    world.write("mlx_lm_lora/train.py", "raise ValueError('of the host')")
    with_us, without = world.run(*IMPORT), world.run(*IMPORT, switch="0")
    assert with_us.returncode == without.returncode == 1
    assert with_us.stderr.splitlines()[-1] == without.stderr.splitlines()[-1] == "ValueError: of the host"


def test_no_host(world):
    (world.path / "mlx_lm_lora" / "train.py").unlink()
    assert "No module named 'mlx_lm_lora.train'" in world.run(*IMPORT).stderr


def test_a_finder_of_somebody_else_that_fails(world):
    startup = (
        f"import sys\nclass Bad:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n"
        f"        if name == 'mlx_lm_lora.train' and not Bad.told:\n            Bad.told = True\n"
        f"            raise OSError('bad finder')\n    told = False\nsys.meta_path.insert(0, Bad)\n{INSTALL}"
    )
    done = world.run(*IMPORT, startup=startup)
    assert "['host']" in done.stdout
    assert "not active (OSError: bad finder)" in done.stderr


def test_two_wrappers_of_the_same_kind_do_not_ask_each_other_for_ever(world):
    world.write("_second_hook.py", (STARTUP / f"{HOOK}.py").read_text())
    done = world.run(*IMPORT, startup=f"{INSTALL}\nimport _second_hook; _second_hook.install()")
    assert "['host', 'seam', 'seam']" in done.stdout
