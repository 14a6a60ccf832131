"""The updates of the loop: every gradient counts, every row is seen, dropout and dtypes are as they should be."""

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.train.evaluate import evaluate
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.trainers import CPO
from tests.conftest import iterate_batches, tiny_llama, with_lora
from tests.engine.train.small_run import ROWS, lora_b, run


@pytest.mark.parametrize(("iters", "accumulation", "updates"), [(3, 4, 1), (8, 4, 2), (9, 4, 3), (2, 1, 2)])
def test_no_gradient_is_dropped(iters, accumulation, updates, monkeypatch):
    calls = []
    real = optim.Adam.update
    monkeypatch.setattr(optim.Adam, "update", lambda *args: (calls.append(1), real(*args)))
    model, _ = run(iters=iters, gradient_accumulation_steps=accumulation)
    assert len(calls) == updates
    assert all(np.abs(a - b).max() > 0 for a, b in zip(lora_b(model), lora_b(with_lora(tiny_llama())), strict=True))


def test_an_epoch_sees_every_row_once(monkeypatch):
    seen = []
    real = GradientStep.__call__
    monkeypatch.setattr(
        GradientStep,
        "__call__",
        lambda self, batch, *rest: (seen.extend(batch.ids.tolist()), real(self, batch, *rest))[1],
    )
    run(iters=6)  # two epochs of three batches
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


@pytest.mark.usefixtures("compiling")
def test_compiled_training_is_the_same():
    for a, b in zip(lora_b(run()[0]), lora_b(run(compiled=True)[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_clipping_keeps_the_dtype_of_the_weights():
    model = tiny_llama()
    model.set_dtype(mx.bfloat16)
    model, _ = run(model=model, max_grad_norm=1e-3)
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {mx.bfloat16}


def test_dropout_is_off_in_evaluation_and_on_in_training():
    model = with_lora(tiny_llama(), dropout=0.5)
    batches = lambda: iterate_batches(ROWS, batch_size=4, shuffle=False)  # noqa: E731
    model.train()
    one, two = (CPO.evaluate(PlainPolicy(model), batches(), CPO.options(), {}) for _ in range(2))
    assert one == two
    assert model.training
    first, second = (PlainPolicy(model)(next(batches())).logps for _ in range(2))
    assert not mx.array_equal(first, second)


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(UserError, match="no rows to evaluate"):
        evaluate(CPO, PlainPolicy(tiny_llama()), iter([]), CPO.options(), {})
