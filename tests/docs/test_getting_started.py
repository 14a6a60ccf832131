"""docs/getting-started.md and docs/a-run.md: their commands print what the page shows, except numbers."""

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.quickstart import files
from tests.paths import DOCS

PAGES = ("getting-started", "a-run")
NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
COLOUR = re.compile(r"\x1b\[\d+m")
QUICKSTART = Path(os.environ.get("PREFPLUS_QUICKSTART", "-"))
"""A folder that the quick start has made, as CI has one: then its command, which takes a minute, is not run again."""

FILL_CACHE = "mlx_lm_lora.train --config quickstart/config.yaml --iters 10 --adapter-path first-epoch"
"""The quick start leaves the log-probs of all rows in the cache. One epoch does so too."""


def run(commands: str, folder: Path, cache: Path) -> str:
    """What they print, uncoloured and without the bars of progress, which go to stderr."""
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": scripts, "COLUMNS": "200", "MLX_LM_LORA_PREFPLUS_CACHE": str(cache)}
    done = subprocess.run(["bash", "-ec", commands], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return COLOUR.sub("", done.stdout)


def fits(shown: str, printed: str) -> bool:
    """Whether the lines of the page stand in the output in their order; … is anything, a number any number."""
    want, got = (NUMBER.sub("N", text) for text in (shown.replace("…", "..."), printed))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(f"... {want} ...", f"begin {got} end", flags)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_what_happens(page, tmp_path):
    printed, source = "", (DOCS / f"{page}.md").read_text("utf-8")
    done = ""
    if files.has_model(QUICKSTART):
        shutil.copytree(QUICKSTART, tmp_path / "quickstart")
        done = "mlx_lm_lora.prefplus quickstart\n"
    for language, text in re.findall(r"```(bash|json|yaml|text)\n(.*?)```", source, re.DOTALL):
        match language:
            case "bash" if text == done:
                run(FILL_CACHE if page == PAGES[0] else "true", tmp_path, tmp_path / "cache")
            case "bash":
                printed = run(text, tmp_path, tmp_path / "cache")
            case "text":
                assert fits(text, printed), f"shown:\n{text}\nprinted:\n{printed}"
            case "json":
                rows = (tmp_path / "quickstart/data/train.jsonl").read_text("utf-8").splitlines()
                assert json.loads(text) in map(json.loads, rows)
            case "yaml":
                (tmp_path / "run.yaml").write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("shown", "same"), [("loss 1.26, …\nSaved x.", True), ("loss 1.26\nSaved y.", False), ("Saved x.\nloss 1", False)]
)
def test_a_page_that_shows_something_else_is_noticed(shown, same):
    assert fits(shown, "Begin\nIter 3: loss 0.7, acc 1\nSaved x.\nEnd") is same
