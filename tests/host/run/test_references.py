"""References from the disk: which runs share them, and which do not."""

import math
import re
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_lm_lora_prefplus.engine.reference import precompute
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import trained
from mlx_lm_lora_prefplus.host.run import references


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept" / "reference"


def known(out: str) -> tuple[int, int]:
    found = re.search(r"Reference: .*, (\d+) of (\d+) rows from the cache", out)
    assert found, out
    return int(found[1]), int(found[2])


@pytest.fixture
def no_pass(monkeypatch):
    """Call it, and any further pass over rows fails."""
    return lambda: monkeypatch.setattr(references, "reference_logps", None)


def test_the_second_run_computes_nothing(go, no_pass):
    first, seen = go()
    assert known(first) == (0, 13)
    no_pass()
    second, again = go(learning_rate=1e-4, lora_parameters={"rank": 2}, beta=0.2)
    assert known(second) == (13, 13)
    assert again.val[0]["val_loss"] == seen.val[0]["val_loss"] == pytest.approx(math.log(2), rel=1e-7)


def test_no_memory_for_the_pass_is_explained(go, monkeypatch):
    def full(*_):
        raise RuntimeError("[malloc] Unable to allocate 123456789 bytes.")

    monkeypatch.setattr(precompute, "_logps", full)
    with pytest.raises(UserError, match=r"Out of memory: .*To reduce it: .*batch_size") as raised:
        go()
    assert "grad_checkpoint" not in str(raised.value), "no gradient is computed here"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dora", "full"])
def test_the_base_is_the_same_for_every_train_type(go, no_pass, kind):
    go()
    no_pass()
    out, seen = go(train_type=kind)
    assert known(out) == (13, 13)
    assert seen.val[0]["val_loss"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"batch_size": 2}, 0),
        ({"seed": 1}, 3),  # the order of evaluation is not seeded
        ({"load_in_4bits": True}, 0),
        ({"max_seq_length": 6}, 0),
        ({"engine": "plain"}, 0),
        ({"loss_type": "aot"}, 3),  # its batches are not cut, and those of evaluation never
        ({"ld_alpha": 0.5}, 0),
        ({"sampo": True}, 0),
    ],
    ids=str,
)
def test_what_the_log_probs_depend_on(go, change, left):
    go()
    assert known(go(**{"iters": None, "epochs": 1, **change})[0]) == (left, 13)


@pytest.mark.slow
def test_another_blas_library_does_not_share_them(go, monkeypatch):
    """Products that are summed in another order differ in the last bit, and rewards would begin at rounding."""
    _, seen = go()
    assert seen.val[0]["val_chosen_reward"] == 0

    def by_halves(layer, x):
        half = layer.weight.shape[1] // 2
        return x[..., half:] @ layer.weight[:, half:].T + x[..., :half] @ layer.weight[:, :half].T

    monkeypatch.setattr(nn.Linear, "__call__", by_halves)
    out, seen = go()
    assert known(out) == (0, 13)
    assert seen.val[0]["val_chosen_reward"] == seen.val[0]["val_rejected_reward"] == 0


@pytest.mark.slow
def test_only_visited_rows_are_computed_and_longer_runs_add_the_others(go, own_cache):
    assert known(go(iters=1, val_batches=0)[0]) == (0, 4)
    (file,) = own_cache.glob("*.npy")
    assert np.isfinite(np.load(file)).all(axis=1).sum() == 4
    kept, two_batches = known(go(iters=2, val_batches=0)[0])
    assert (kept, two_batches) in ((4, 6), (4, 8))
    assert known(go(iters=9, val_batches=0)[0]) == (two_batches, 10)
    assert np.isfinite(np.load(file)).all()


def test_an_interrupted_pass_reads_and_computes_only_what_is_left(go, own_cache, monkeypatch):
    real, seen = references.reference_logps, []

    def stopping(policy, batches, *given, **named):
        batches = list(batches)
        seen.append([batch.ids.tolist() for batch in batches])
        real(policy, batches[: len(batches) - len(seen) % 2], *given, **named)
        if len(seen) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(references, "reference_logps", stopping)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        go(val_batches=0)
    out, _ = go(val_batches=0)
    assert known(out.rpartition("Objective")[2])[0] in (6, 8)
    assert len(seen[0]) == 3 and seen[1] == seen[0][-1:]


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_what_the_cache_holds(go):
    go(adapter_path="cold")
    go(adapter_path="warm")
    go(adapter_path="other", batch_size=2)
    go(adapter_path="after")
    one, two, three = (Path(name, "adapters.safetensors").read_bytes() for name in ("cold", "warm", "after"))
    assert one == two == three


@pytest.mark.slow
def test_over_a_frozen_trunk_the_steps_fill_the_cache(go, own_cache, no_pass):
    """The pass is over the rows of validation alone."""
    changes = {"num_layers": 1, "epochs": 2, "iters": None}
    out, _ = go(adapter_path="cold", **changes)
    assert "computed in their first step, where policy and reference share layers 1 to 1 of 2" in out
    assert "no second model, 0 of 13 rows from the cache" in out
    assert sorted(np.isfinite(np.load(file)).all(axis=1).sum() for file in own_cache.glob("*.npy")) == [3, 10]
    no_pass()
    out, _ = go(adapter_path="warm", **changes)
    assert known(out) == (13, 13) and "in its first step" not in out
    assert Path("cold/adapters.safetensors").read_bytes() == Path("warm/adapters.safetensors").read_bytes()


@pytest.mark.slow
def test_steps_and_pass_give_the_same_bits(go, own_cache, monkeypatch):
    """With adapters on every layer there is no trunk: the rows are passed over before training."""
    monkeypatch.setattr("mlx_lm_lora_prefplus.engine.train.gradient.CUT_POSITIONS", 20)
    found = []
    for layers in (1, 2):
        go(num_layers=layers, epochs=1, iters=None, val_batches=0)
        (file,) = own_cache.glob("*.npy")
        found.append(np.load(file))
        file.unlink()
    assert np.array_equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"qat_enable": True, "qat_bits": 4}, {"engine": "plain"}, {"reference_model_path": "first"}, {"num_layers": 2}],
    ids=str,
)
def test_with_these_a_pass_goes_before(go, change):
    go(adapter_path="first", iters=2)
    assert "in its first step" not in go(**{"num_layers": 1, **change})[0]


@pytest.mark.slow
def test_evaluation_reuses_them(go, no_pass):
    go(test=True)
    no_pass()
    out, _ = go(train=False, test=True)
    assert known(out) == (3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["model", "first", "first/adapters.safetensors"])
def test_a_named_reference_is_not_loaded_again(go, model_folder, monkeypatch, no_pass, path):
    go(adapter_path="first")
    path = str(model_folder) if path == "model" else path
    out, seen = go(reference_model_path=path)
    assert known(out) == (0, 13) and "loaded for one pass" in out
    monkeypatch.setattr(trained, "load_reference", None)
    no_pass()
    out, again = go(reference_model_path=path)
    assert known(out) == (13, 13) and "not loaded" in out
    assert again.val == [{**payload, "val_time": pytest.approx(0, abs=60)} for payload in seen.val]


@pytest.mark.slow
def test_other_adapters_under_the_same_name_are_another_reference(go):
    go(adapter_path="first")
    go(reference_model_path="first")
    go(adapter_path="first", seed=3)
    assert known(go(reference_model_path="first")[0]) == (0, 13)


@pytest.mark.slow
def test_low_precision_begins_at_ln_2_exactly(go, model_folder, tmp_path):
    """Padding changes how bfloat16 rounds: the same batches at the start, cold or warm."""
    import shutil

    folder = tmp_path / "low"
    shutil.copytree(model_folder, folder)
    weights = mx.load(str(folder / "model.safetensors"))
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        {name: value.astype(mx.bfloat16) for name, value in weights.items()},
        {"format": "mlx"},
    )
    for _ in range(2):
        _, seen = go(model=str(folder), iters=1)
        assert seen.val[0]["val_loss"] == pytest.approx(math.log(2), rel=1e-7)
        assert seen.train == [] or seen.train[0]["train_loss"] == pytest.approx(math.log(2), rel=1e-7)
