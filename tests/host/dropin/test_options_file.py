"""`prefplus.yaml`: options that no argument of the host's functions is for."""

from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import dropin
from mlx_lm_lora_prefplus.host.dropin.settings import FILE, VARIABLE
from tests.conftest import tiny_llama, with_lora
from tests.host.dropin.calls import even_rows, go, host_items, same, weights


def test_a_file_beside_the_adapters_gives_further_options(capsys):
    Path("adapters").mkdir()
    Path("adapters", FILE).write_text("loss_type: simpo\nlearning_rate: 1\nsimpo_gama: 2\n")
    given = {"batch_size": 4, "num_batches": -1, "delta": 50.0, "max_seq_length": 64}
    data, untrained = host_items(even_rows(4)), with_lora(tiny_llama(), moved=False)
    simpo = dropin.evaluate_cpo(untrained, data, beta=2.0, loss_type="simpo", **given)
    _, seen = go("cpo", valid=even_rows(4), rows=even_rows())
    assert seen.val[0]["val_loss"] == pytest.approx(simpo[0], rel=1e-6)  # with SimPO's own beta
    out = capsys.readouterr().out
    assert "learning_rate (adapters/prefplus.yaml) has no effect on mode cpo here" in out
    assert "simpo_gama (adapters/prefplus.yaml) has no effect on mode cpo here; did you mean simpo_gamma?" in out


def test_a_file_for_all_runs_and_which_goes_first(monkeypatch):
    Path("all.yaml").write_text("label_smoothing: 0.3\nmax_grad_norm: 0.001\n")
    monkeypatch.setenv(VARIABLE, "all.yaml")
    both, _ = go("cpo", adapter_file="one/adapters.safetensors")
    Path("two").mkdir()
    Path("two", FILE).write_text("max_grad_norm: 1000.0\n")
    free, _ = go("cpo", adapter_file="two/adapters.safetensors")
    monkeypatch.delenv(VARIABLE)
    plain, _ = go("cpo", adapter_file="three/adapters.safetensors")
    assert not same(weights(both), weights(free), atol=1e-5)
    assert not same(weights(free), weights(plain), atol=1e-5)


def test_a_wrong_option_is_refused_before_anything_is_written():
    Path("adapters").mkdir()
    Path("adapters", FILE).write_text("label_smoothing: 0.9\n")
    with pytest.raises(UserError, match="label_smoothing: 0.9"):
        go("cpo", loss_type="sigmiod")
    assert [file.name for file in Path("adapters").iterdir()] == [FILE]
