"""The host's MCP server with our modes in its table: what it tells, checks and starts."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import mlx_lm_lora.mcp_server as server
import pytest

from mlx_lm_lora_prefplus.host import originals
from mlx_lm_lora_prefplus.host.seam import install as activate
from mlx_lm_lora_prefplus.host.seam import mcp
from mlx_lm_lora_prefplus.plugin import installed
from tests.conftest import write_pairs
from tests.host.tools.test_studio import START_UP
from tests.paths import ROOT

OURS = {"simpo", "kto", "bco"}

pytestmark = pytest.mark.slow


@pytest.fixture
def plain(monkeypatch):
    """The module as its authors wrote it."""
    for name, original in originals.originals_of(server).items():
        monkeypatch.setattr(server, name, original)
    monkeypatch.delattr(server, originals.MARK, raising=False)
    yield server
    if originals.is_active(server):
        delattr(server, originals.MARK)


@pytest.fixture
def extended(plain):
    installed.registry.cache_clear()
    assert activate.activate(plain)
    return plain


def test_our_modes_are_in_the_table_and_the_hosts_stay(plain):
    before = dict(plain.TRAIN_MODES)
    assert activate.activate(plain)
    assert set(plain.TRAIN_MODES) == set(before) | OURS
    assert list(plain.TRAIN_MODES)[: len(before)] == list(before)
    for mode, text in before.items():
        assert plain.TRAIN_MODES[mode].startswith(text)
        assert ("Run by mlx-lm-lora-prefplus" in plain.TRAIN_MODES[mode]) is (mode in ("dpo", "cpo", "orpo"))
    assert "Data rows: prompt, completion, label" in plain.TRAIN_MODES["kto"]
    assert "loss_type: sigmoid, hinge, ipo, dpop" in plain.TRAIN_MODES["dpo"]


def test_every_kind_of_rows_has_its_words():

    assert set(mcp.COLUMNS) == set(mcp.RowKind.__args__)


def test_our_modes_and_keys_pass_its_checks(extended, tmp_path):
    write_pairs(tmp_path, train=2)
    check = lambda **given: extended.build_config("owner/model", str(tmp_path), **given)[1:]  # noqa: E731
    errors, notes = check(
        train_mode="simpo", extra_config='{"simpo_gamma": 1.0, "max_grad_norm": 1.0, "simpo_gama": 1}'
    )
    assert errors == []
    assert [note for note in notes if "Unknown" in note] == ["Unknown config keys passed through as-is: simpo_gama."]
    assert check(train_mode="simpoo")[0][0].startswith("Unknown train_mode 'simpoo'")


def test_a_server_that_does_not_fit_is_left_alone(plain, monkeypatch, capsys):
    monkeypatch.setattr(plain, "TRAIN_MODES", ("sft", "dpo"))
    assert activate.activate(plain) is False
    assert plain.TRAIN_MODES == ("sft", "dpo")
    assert "mlx_lm_lora.mcp_server has no table TRAIN_MODES" in capsys.readouterr().err


@pytest.fixture
def environment(tmp_path):
    """Variables of a process in which the start-up hook is at work."""
    (tmp_path / "sitecustomize.py").write_text(START_UP)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLX_LM_LORA_PREFPLUS")}
    clean["MLX_LM_LORA_PREFPLUS_CACHE"] = str(tmp_path / "cache")
    return {**clean, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "MLX_LM_LORA_PREFPLUS": "strict"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("switch", "ours"), [({}, True), ({"MLX_LM_LORA_PREFPLUS": "0"}, False)], ids=["on", "switched off"]
)
def test_the_hook_brings_them_into_the_server(environment, switch, ours):
    code = "from mlx_lm_lora.mcp_server import TRAIN_MODES; print('simpo' in TRAIN_MODES)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**environment, **switch})
    assert done.stdout.strip() == str(ours), done.stderr


@pytest.mark.slow
def test_a_run_of_our_mode_from_its_config_file(extended, environment, model_folder, tmp_path, monkeypatch):
    """The server writes the file and starts `python -m mlx_lm_lora.train --config FILE`; its log parser follows."""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    write_pairs(tmp_path / "data", train=8, valid=2)
    runs = extended.RunManager(tmp_path / "runs", python=sys.executable)
    options = {"simpo_gamma": 0.5, "steps_per_report": 2, "beta": 2.5, "val_batches": 1}
    run = runs.start(
        model=str(model_folder),
        data=str(tmp_path / "data"),
        train_mode="simpo",
        iters=4,
        batch_size=2,
        learning_rate=1e-3,
        num_layers=-1,
        extra_config=json.dumps(options),
    )
    deadline = time.monotonic() + 120
    while runs.get(run["id"])["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.2)
    log = Path(run["log_path"]).read_text()
    assert runs.get(run["id"])["status"] == "completed", log
    info = runs.progress(run)
    assert info["iteration"] == 4 and info["train_loss"] > 0 and info["val_loss"] > 0 and "error" not in info
    assert "--train-mode simpo is run by mlx-lm-lora-prefplus" in log
    assert (Path(run["adapter_path"]) / "adapters.safetensors").is_file()


CLIENT = """
import asyncio, os, sys
from mcp import Client, StdioServerParameters

async def main():
    server = StdioServerParameters(command=sys.executable, args=["-m", "mlx_lm_lora.mcp_server"], env=dict(os.environ))
    async with Client(server) as client:
        answer = await client.call_tool("list_training_modes", {})
        print(answer.content[0].text)
        for mode in ("kto", "simpo", "dpo"):
            given = {"data": sys.argv[1], "model": sys.argv[2], "train_mode": mode}
            answer = await client.call_tool("inspect_dataset", given)
            print(mode, answer.structured_content or answer.content[0].text)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mcp") is None, reason="the host's extra `mcp` is not installed")
def test_an_agent_sees_them_and_looks_at_data(environment, model_folder, tmp_path):
    write_pairs(tmp_path / "data", train=5, valid=2)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(tmp_path / "data"), str(model_folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert "- simpo: Preference tuning without a reference" in done.stdout, done.stderr
    for mode, rows in (("kto", 10), ("simpo", 5), ("dpo", 5)):
        assert f"{mode} {{'valid': True, 'rows': {{'train': {rows}," in done.stdout, done.stdout
