"""The pass over the reference: what it keeps, that it goes on where it stopped, and what a model is known by."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.model import digest
from mlx_lm_lora_prefplus.engine.model.adapters import adapters_off
from mlx_lm_lora_prefplus.engine.model.digest import files_digest, weights_digest
from mlx_lm_lora_prefplus.engine.reference import store as reference_cache
from mlx_lm_lora_prefplus.engine.reference.precompute import reference_logps, with_reference
from mlx_lm_lora_prefplus.engine.reference.store import ReferenceStore
from mlx_lm_lora_prefplus.engine.reference.tr_dpo import MovingReference
from mlx_lm_lora_prefplus.engine.train.evaluate import evaluate
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.storage.sealed import read_sealed_json
from mlx_lm_lora_prefplus.trainers import CPO
from tests.conftest import iterate_batches, random_rows, tiny_llama, with_lora

ROWS = random_rows(10)


def batches():
    return iterate_batches(ROWS, batch_size=4, seed=1)


class Counting(PlainPolicy):
    """Stops, as a user does, after so many batches."""

    def __init__(self, model, stop_after: int = 99):
        super().__init__(model)
        self.calls, self.stop_after = 0, stop_after

    def __call__(self, batch, weights=None, *, statistics=False):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return super().__call__(batch, weights, statistics=statistics)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "key.npy"


def test_an_interrupted_pass_goes_on_where_it_stopped(file):
    model = tiny_llama()
    whole = reference_logps(PlainPolicy(model), batches(), 10)
    with pytest.raises(KeyboardInterrupt):
        reference_logps(Counting(model, stop_after=2), batches(), 10, store=ReferenceStore(file, 10))
    store = ReferenceStore(file, 10)
    assert 4 < store.has(np.arange(10)).sum() < 10
    rest = Counting(model)
    assert np.array_equal(reference_logps(rest, batches(), 10, store=store), whole)
    assert rest.calls == 1
    again = Counting(model)
    reference_logps(again, batches(), 10, store=ReferenceStore(file, 10))
    assert again.calls == 0


def test_the_file_is_written_during_the_pass(file, monkeypatch):
    """A process that is killed loses what came since the last write, not all."""
    monkeypatch.setattr(reference_cache, "SAVE_SECONDS", 0)
    store = ReferenceStore(file, 3, {"model": "m"})
    store.add(np.array([2]), np.array([[-1.0, -2.0]]))
    assert np.array_equal(np.load(file), [[np.nan] * 2] * 2 + [[-1, -2]], equal_nan=True)
    assert read_sealed_json(file.with_suffix(".json")) == {"model": "m", "rows": 3, "known": 1}
    assert sorted(path.name for path in file.parent.iterdir()) == ["key.json", "key.npy"]


def test_a_disk_that_refuses_does_not_stop_the_pass(file):
    store = ReferenceStore(file.parent / "absent" / "key.npy", 10)
    assert not np.isnan(reference_logps(PlainPolicy(tiny_llama()), batches(), 10, store=store)).any()


def test_reference_and_evaluation_round_as_training_does(derivatives):
    """On Metal, attention has other kernels outside of a derivative."""
    seen = []

    class Seen(PlainPolicy):
        def __call__(self, batch, weights=None, **more):
            seen.append(derivatives[0])
            return super().__call__(batch, weights, **more)

    policy, batches = Seen(tiny_llama()), list(iterate_batches(random_rows(4), batch_size=2, shuffle=False))
    first = reference_logps(policy, batches, 4)
    np.testing.assert_array_equal(first, reference_logps(PlainPolicy(policy.model), batches, 4))
    evaluate(CPO, policy, iter(batches), CPO.options(), {})
    moving = MovingReference(policy, 1, 1.0, lambda batch: None)
    moving.after_update(1)
    assert len(list(moving.fill(batches, ReferenceStore(None, 4)))) == 2
    assert seen == [1] * 6


def test_rows_that_are_not_visited_are_not_computed():
    first = next(batches())
    store = ReferenceStore(None, 10)
    logps = reference_logps(PlainPolicy(tiny_llama()), [first], 10, store=store)
    assert sorted(np.flatnonzero(~np.isnan(logps[:, 0]))) == sorted(first.ids.tolist())
    filled = next(with_reference([first], store))
    assert np.array_equal(np.array(filled.reference_logps).reshape(2, -1).T, logps[np.array(first.ids)])


def test_what_is_not_finite_is_refused_and_not_kept(file):
    model = tiny_llama()
    model.model.norm.weight = model.model.norm.weight * float("nan")
    with pytest.raises(UserError, match="not finite, first for row"):
        reference_logps(PlainPolicy(model), batches(), 10, store=ReferenceStore(file, 10))
    assert not ReferenceStore(file, 10).has(np.arange(10)).any()


def test_the_progress_bar_counts_rows_and_shows_no_rate(capsys):
    reference_logps(PlainPolicy(tiny_llama()), batches(), 10, "Reference, train")
    told = capsys.readouterr().err
    assert "Reference, train: 10 of 10 rows" in told
    assert "it/s" not in told and "loss" not in told


@pytest.mark.parametrize("dora", [False, True])
def test_a_base_is_known_under_any_adapters(dora):
    bare = weights_digest(tiny_llama(tied=False))
    adapted = with_lora(tiny_llama(tied=False), dora=dora, rank=2)
    assert weights_digest(adapted) == bare
    with adapters_off(adapted):
        assert weights_digest(adapted) == bare


def test_other_weights_have_another_digest(monkeypatch):
    monkeypatch.setattr(digest, "ROW", 8)
    monkeypatch.setattr(digest, "CHUNK", 32)
    model = tiny_llama()
    layer = model.model.layers[1].mlp.up_proj
    seen = {weights_digest(model), weights_digest(tiny_llama(seed=1))}
    original = layer.weight
    one, swapped, beside = mx.array(original), mx.array(original), mx.array(original)
    one[3, 5] = one[3, 5] + 1e-6
    swapped[3, 5], swapped[4, 6] = original[4, 6], original[3, 5]
    beside[3, 5], beside[3, 8] = original[3, 8], original[3, 5]
    rows = mx.concatenate([original[1:2], original[:1], original[2:]])
    for weight in (one, swapped, beside, rows, original.astype(mx.bfloat16)):
        layer.weight = weight
        seen.add(weights_digest(model))
    layer.weight = original
    model.args.rope_theta = 5.0
    seen.add(weights_digest(model))
    nn.quantize(model, bits=4, group_size=32)
    seen.add(weights_digest(model))
    assert len(seen) == 9


def test_a_weight_of_many_bytes_is_read_in_parts(monkeypatch):
    """MLX counts the bytes of a view in 32 bits, so a weight above 2 GiB is never one view."""
    model = tiny_llama()
    whole, sums, read = weights_digest(model), digest._sums, []
    monkeypatch.setattr(digest, "PART_BYTES", 1000)
    monkeypatch.setattr(digest, "_sums", lambda part: read.append(part.nbytes) or sums(part))
    found = {weights_digest(model)}
    assert max(read) <= 1000 and sum(read) == sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    weight = model.model.layers[1].mlp.up_proj.weight
    for row in (0, len(weight) // 2, len(weight) - 1):
        weight[row, 3] = weight[row, 3] + 1e-6
        found.add(weights_digest(model))
    assert len(found) == 4 and whole not in found


def test_files_are_known_by_size_time_and_samples(tmp_path):
    import os

    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(10_000_000))
    before, state = files_digest([file]), file.stat()
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert files_digest([file]) != before
    file.write_bytes(b"1" + bytes(9_999_999))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert files_digest([file]) != before
    file.write_bytes(bytes(10_000_000))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert files_digest([file]) == before
