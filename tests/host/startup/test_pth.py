"""The `.pth` line in bare interpreters: whatever is wrong with our files, Python starts and the host runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

STARTUP = ROOT / "mlx_lm_lora_prefplus" / "host" / "startup"
PTH, HOOK = "mlx_lm_lora_prefplus.pth", "_mlx_lm_lora_prefplus_hook.py"
HOST = """
state = ["host"]
def main():
    print("main of", __name__, state)
if __name__ == "__main__":
    main()
"""


@pytest.fixture
def site_packages(tmp_path):
    """A folder with our `.pth` file and hook, a host that stands in for the real one, and our package."""
    for file in (PTH, HOOK):
        (tmp_path / file).write_bytes((STARTUP / file).read_bytes())
    for name, text in {
        "mlx_lm_lora/__init__.py": "",
        "mlx_lm_lora/train.py": HOST,
        "mlx_lm_lora_prefplus/__init__.py": "",
        "mlx_lm_lora_prefplus/host/__init__.py": "",
        "mlx_lm_lora_prefplus/host/seam/install.py": "def activate(module): module.state.append('seam')",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def python(folder: Path, *arguments: str, switch: str = "") -> subprocess.CompletedProcess[str]:
    """Start an interpreter that reads the `.pth` files of the folder as it does those of site-packages."""
    code = f"import site; site.addsitedir({str(folder)!r})\n"
    if arguments[0] == "-m":
        code += f"import sys, runpy\nsys.argv = {list(arguments[1:])!r}\nrunpy._run_module_as_main({arguments[1]!r})"
    else:
        code += arguments[1]
    return subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1", "MLX_LM_LORA_PREFPLUS": switch},
    )


LAUNCHES = [("-c", "import mlx_lm_lora.train as t; t.main()"), ("-m", "mlx_lm_lora.train")]


def test_the_file_is_one_line_that_python_executes():
    lines = (STARTUP / PTH).read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("import ") and lines[0].isascii()


@pytest.mark.parametrize("launch", LAUNCHES)
def test_it_installs_the_hook_and_leaves_no_name_behind(site_packages, launch):
    done = python(site_packages, *launch)
    assert (done.returncode, done.stdout, done.stderr) == (0, "main of mlx_lm_lora.train ['host', 'seam']\n", "")
    assert python(site_packages, "-c", "import builtins, __main__; print(hasattr(__main__, 'h'))").stdout == "False\n"


BROKEN = {
    "syntax": b"def install(:",
    "no text": b"\xff\xfe\x00",
    "a null byte": b"install = \x00",
    "empty": b"",
    "raises": b"raise RuntimeError('oh no')",
    "exits": b"raise SystemExit(3)",
    "a base exception": b"class E(BaseException): pass\nraise E",
    "interrupt": b"raise KeyboardInterrupt",
    "install exits": b"def install(): raise SystemExit(3)",
    "missing": None,
    "a folder": "folder",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_damaged_hook_is_silent_and_the_host_runs(site_packages, content):
    (site_packages / HOOK).unlink()
    if content == "folder":
        (site_packages / HOOK).mkdir()
    elif content is not None:
        (site_packages / HOOK).write_bytes(content)
    for switch in ("", "strict"):
        done = python(site_packages, "-c", "print('started')", switch=switch)
        assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")
    for launch in LAUNCHES:
        done = python(site_packages, *launch)
        assert done.returncode == 0 and done.stderr == "" and "['host']" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_hook_that_may_not_be_read_is_silent(site_packages):
    (site_packages / HOOK).chmod(0)
    done = python(site_packages, "-c", "print('started')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize(
    "statement",
    [
        "raise SystemExit(3)",
        "import sys; sys.exit('bye')",
        "raise GeneratorExit",
        "class E(BaseException): pass\nraise E",
    ],
)
@pytest.mark.parametrize("when", ["imported", "called"])
def test_what_ours_raises_does_not_end_the_host(site_packages, statement, launch, when):
    text = statement if when == "imported" else "def activate(module):\n    " + statement.replace("\n", "\n    ")
    (site_packages / "mlx_lm_lora_prefplus/host/seam/install.py").write_text(text)
    done = python(site_packages, *launch)
    assert done.returncode == 0 and "['host']" in done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("[mlx-lm-lora-prefplus] not active (")


def test_ctrl_c_while_ours_is_imported_ends_the_program(site_packages):
    (site_packages / "mlx_lm_lora_prefplus/host/seam/install.py").write_text("raise KeyboardInterrupt")
    done = python(site_packages, *LAUNCHES[0])
    assert done.returncode != 0 and "main of" not in done.stdout


@pytest.mark.parametrize("stream", ["None", "open('/dev/full', 'w', buffering=1)", "__import__('io').StringIO()"])
def test_a_stderr_that_takes_nothing_does_not_stop_the_host(site_packages, stream):
    if "/dev/full" in stream and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    (site_packages / "mlx_lm_lora_prefplus/host/seam/install.py").write_text("raise RuntimeError('two\\nlines')")
    close = "; sys.stderr.close()" if "StringIO" in stream else ""
    code = f"import sys; sys.stderr = {stream}{close}; import mlx_lm_lora.train as t; t.main(); sys.stderr = None"
    done = python(site_packages, "-c", code)
    assert done.returncode == 0 and "main of mlx_lm_lora.train ['host']" in done.stdout
