"""The adapters that the host's functions save: their names, their config, and what was there before."""

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest

from tests.conftest import random_rows, tiny_llama, with_lora
from tests.host.dropin.calls import go


def test_an_adapter_file_that_is_a_folder_takes_the_adapters_in():
    Path("mine").mkdir()
    go("cpo", adapter_file=Path("mine"))
    assert {"adapters.safetensors", "adapter_config.json"} <= {file.name for file in Path("mine").iterdir()}


@pytest.mark.slow
def test_adapters_that_are_somebody_elses_load_with_mlx_lm(model_folder):
    for dora in (False, True):
        model, _ = mlx_lm.load(str(model_folder))
        with_lora(model, dora=dora, moved=False)
        tuned, _ = go("cpo", model=model, rows=random_rows(6), adapter_file=f"{dora}/adapters.safetensors")
        config = json.loads(Path(f"{dora}/adapter_config.json").read_text())
        assert config["fine_tune_type"] == ("dora" if dora else "lora")
        loaded, _ = mlx_lm.load(str(model_folder), adapter_path=str(dora))
        tokens = mx.array([[6, 7, 8]])
        tuned.eval()
        assert mx.allclose(loaded(tokens), tuned(tokens), atol=1e-5)


def test_an_adapter_config_that_is_there_is_kept_and_completed():
    Path("adapters").mkdir()
    written = {"lora_parameters": {"rank": 4, "dropout": 0.0, "scale": 10.0}, "num_layers": 2}
    Path("adapters/adapter_config.json").write_text(json.dumps(written))
    go("cpo")
    assert json.loads(Path("adapters/adapter_config.json").read_text()) == {"fine_tune_type": "lora", **written}


def adapter_files(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).glob("*adapters.safetensors")}


def test_weights_of_others_are_moved_and_those_that_a_run_goes_on_from_stay(capsys):
    args = {"iters": 2, "steps_per_save": 1, "batch_size": 3}
    go("cpo", **args)
    first = adapter_files("adapters")
    assert len(first) == 3
    go("cpo")
    assert "contained weights of another run. They were moved to adapters/previous-1" in capsys.readouterr().out
    assert adapter_files("adapters/previous-1") == first and len(adapter_files("adapters")) == 1

    resumed = with_lora(tiny_llama(), moved=False)
    resumed.load_weights("adapters/previous-1/0000001_adapters.safetensors", strict=False)
    for name, data in first.items():
        Path("again").mkdir(exist_ok=True)
        Path("again", name).write_bytes(data)
    go("cpo", model=resumed, adapter_file="again/adapters.safetensors")
    assert "continues from weights in again. A copy of them is kept in again/previous-1" in capsys.readouterr().out
    assert adapter_files("again/previous-1") == first
    assert {name for name, data in adapter_files("again").items() if data == first[name]} == {
        *("0000001_adapters.safetensors", "0000002_adapters.safetensors")
    }
