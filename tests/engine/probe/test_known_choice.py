"""What the probe found is found again on the disk, by a start with the same model, settings and code alone."""

from pathlib import Path

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.engine.model.digest import weights_digest
from mlx_lm_lora_prefplus.engine.probe import known_choice, select
from mlx_lm_lora_prefplus.engine.probe.known_choice import KnownChoice
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import tiny_llama, with_lora

AUTO = RunSettings()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/probe"


@pytest.fixture
def probes(monkeypatch) -> list[bool]:
    """An item for each probe that was done."""
    done: list[bool] = []
    probe = select._probe
    monkeypatch.setattr(select, "_probe", lambda *given: done.append(True) or probe(*given))
    return done


def chosen(model, settings=AUTO, keep=Keep.ALL, packs=False):
    known = KnownChoice(weights_digest(model), model, settings, None, keep, packs)
    return choose_policy(model, settings, None, keep, known, packs)


def test_the_second_start_takes_the_choice_of_the_first(probes):
    first, second = (chosen(with_lora(tiny_llama(), layers=1), keep=Keep.INPUTS) for _ in range(2))
    assert len(probes) == 1
    assert type(second.policy) is SharedPrefixPolicy and second.policy.keep is Keep.INPUTS
    assert (second.description, second.compilable) == (first.description, first.compilable)
    assert second.trunk.size == first.trunk.size == 1
    assert second.policy.halves.found() == first.policy.halves.found()
    assert second.policy.halves.cuts and second.policy.halves.head_names


@pytest.mark.parametrize("change", ["system", "TF32"])
def test_what_selects_kernels_needs_a_new_probe(probes, monkeypatch, change):
    chosen(with_lora(tiny_llama()))
    if change == "system":
        monkeypatch.setattr("platform.mac_ver", lambda: ("26.2", ("", "", ""), "arm64"))
    else:
        monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    chosen(with_lora(tiny_llama()))
    assert len(probes) == 2


def test_the_second_start_computes_nothing(monkeypatch):
    chosen(with_lora(tiny_llama()))
    model, called = with_lora(tiny_llama()), []
    monkeypatch.setattr(type(model), "__call__", lambda *given: called.append(given))
    assert type(chosen(model).policy) is SharedPrefixPolicy and not called


def test_a_model_that_takes_the_plain_way_is_known_too(probes, monkeypatch):
    monkeypatch.setattr(select, "split_model", lambda model: None)
    first, second = (chosen(with_lora(tiny_llama())) for _ in range(2))
    assert len(probes) == 1 and first.description == second.description and "cannot be separated" in second.description


def edited_code(monkeypatch):
    monkeypatch.setattr(known_choice, "_code", lambda model: ["edited"])


def newer_mlx(monkeypatch):
    monkeypatch.setattr(known_choice, "version", lambda name: "99.0")


@pytest.mark.parametrize(
    "change",
    [
        {"model": lambda: with_lora(tiny_llama(layers=3))},
        {"model": lambda: with_lora(tiny_llama(), layers=1)},
        {"model": lambda: tiny_llama()},
        {"settings": RunSettings(efficient_long_context=True)},
        {"settings": RunSettings(lora_parameters={"rank": 8, "dropout": 0.1, "scale": 10.0})},
        {"keep": Keep.PRODUCTS},
        {"packs": True},
        edited_code,
        newer_mlx,
    ],
    ids=["layers", "trained layers", "no adapters", "engine", "dropout", "keep", "packed rows", "code", "mlx"],
)
def test_whatever_may_change_the_choice_is_probed_again(probes, change, monkeypatch):
    chosen(with_lora(tiny_llama()))
    if isinstance(change, dict):
        model = change.pop("model", lambda: with_lora(tiny_llama()))()
        chosen(model, **change)
    else:
        change(monkeypatch)
        chosen(with_lora(tiny_llama()))
    assert len(probes) == 2


def test_code_is_that_of_the_engine_and_of_batches(monkeypatch):
    read = []
    monkeypatch.setattr(Path, "read_bytes", lambda file: read.append(file.name) or b"")
    known_choice._code(tiny_llama())
    assert {"select.py", "packed.py", "packing.py", "llama.py"} <= {*read}


def test_other_weights_are_probed_again(probes):
    model = with_lora(tiny_llama())
    chosen(model)
    model.model.norm.weight = mx.array(model.model.norm.weight) * 1.5
    chosen(model)
    assert len(probes) == 2


def test_a_damaged_choice_is_made_again(probes, cache, capsys):
    chosen(with_lora(tiny_llama()))
    (file,) = cache.glob("*.json")
    file.write_text(file.read_text().replace('"shares_trunk": false', '"shares_trunk": true'))
    assert chosen(with_lora(tiny_llama())).trunk is None
    assert len(probes) == 2 and "is damaged" in capsys.readouterr().err
    chosen(with_lora(tiny_llama()))
    assert len(probes) == 2


def test_a_cache_that_cannot_be_written_costs_a_probe(probes, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "file/cache"))
    assert [type(chosen(with_lora(tiny_llama())).policy) for _ in range(2)] == [SharedPrefixPolicy] * 2
    assert len(probes) == 2
