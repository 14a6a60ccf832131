"""A compiled update gives what an update without compilation gives."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.train.update import Update

OPTIMIZERS = {
    "adam": lambda rate: optim.Adam(rate),
    "adamw": lambda rate: optim.AdamW(rate, weight_decay=0.1),
    "adafactor": lambda rate: optim.Adafactor(rate),
    "muon": lambda rate: optim.Muon(rate),
}


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(
    ("name", "dtype"), [("adam", mx.bfloat16), ("adamw", mx.float32), ("adafactor", mx.float32), ("muon", mx.bfloat16)]
)
def test_compiled_updates_are_the_same(name, dtype):
    """With a schedule of the learning rate, and with gradients of which some are clipped."""

    def updated(compiled: bool) -> tuple[list[float], nn.Module]:
        mx.random.seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
        model.set_dtype(dtype)
        optimizer = OPTIMIZERS[name](optim.linear_schedule(1e-2, 1e-3, 3))
        optimizer.init(model.trainable_parameters())
        update = Update(model, optimizer, 2.0, compiled)
        norms = []
        for scale in (0.1, 1.0, 10.0):
            gradient = nn.value_and_grad(model, lambda: (scale * model(mx.ones((2, 8), dtype))).sum())()[1]  # noqa: B023
            clipped, norm = update.clip(gradient)
            assert all(value.dtype == dtype for _, value in tree_flatten(clipped))
            update.apply(clipped)
            norms.append(norm.item())
        assert optimizer.step.item() == 3 and optimizer.learning_rate.item() < 5e-3
        return norms, model

    (norms, eager), (again, compiled) = map(updated, (False, True))
    assert norms[0] < 2 < norms[2] and again == pytest.approx(norms, rel=1e-2 if dtype == mx.bfloat16 else 1e-6)
    for (_, one), (_, two) in zip(tree_flatten(eager.parameters()), tree_flatten(compiled.parameters()), strict=True):
        one, two = (np.array(value.astype(mx.float32)) for value in (one, two))
        np.testing.assert_allclose(two, one, rtol=2e-2 if dtype == mx.bfloat16 else 1e-5, atol=1e-5)
