"""docs/add-a-loss.md, done: its edits are made to a copy of the package, and what they add is tried there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import DOCS, ROOT

pytestmark = pytest.mark.slow

PAGE = (DOCS / "add-a-loss.md").read_text(encoding="utf-8")
EDITS = (
    ("mlx_lm_lora_prefplus/losses/formulas/pairs.py", None),
    ("mlx_lm_lora_prefplus/losses/catalogue.py", "DPO: dict[str, Loss] = {\n"),
    ("mlx_lm_lora_prefplus/losses/options/dpo.py", "    table: ClassVar[Mapping[str, Loss]] = tables.DPO\n"),
    ("tests/losses/in_float64.py", None),
    ("tests/losses/formulas/test_pairs.py", "CASES = {\n"),
)
"""The file of each code block of the page, and the line that it goes behind (None: the end of the file)."""


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.partition("## In this repository")[2], flags=re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for name in ("mlx_lm_lora_prefplus", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for (file, line), block in zip(EDITS, blocks(), strict=True):
        path = folder / file
        text = path.read_text(encoding="utf-8")
        assert line is None or text.count(line) == 1, file
        path.write_text(text.replace(line, line + block) if line else f"{text}\n\n{block}", encoding="utf-8")
    return folder


def run(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_is_about_twenty_lines():
    code = [line for block in blocks() for line in re.sub(r'""".*?"""', "", block, flags=re.DOTALL).splitlines()]
    assert len([line for line in code if line.strip()]) <= 20
    assert all(file.split("/")[-1] in PAGE for file, _ in EDITS)


def test_its_tests_pass(copy):
    told = run(
        copy,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-m", ""),
        *("tests/losses", "tests/trainers", "-k", "power_hinge"),
    )
    assert int(re.findall(r"(\d+) passed", told)[0]) > 15


def test_the_command_knows_it(copy):
    (row,) = json.loads(run(copy, "-m", "mlx_lm_lora_prefplus", "losses", "power_hinge", "--json"))
    assert row["formula"] == "max(0, 1 − βΔ)^k" and row["mode"] == "dpo"
    assert row["options"][1] == {
        **{"key": "hinge_power", "default": 2.0, "bounds": "≥ 1"},
        "about": "power_hinge: the power k; 1 is hinge.",
    }


def test_its_pages_are_made(copy):
    run(copy, "-c", "from tests.docs import pages; assert 'power_hinge' in pages.index()")
