"""The reference that is a bias-corrected moving average, against the formula in float64 on the weights themselves."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.model.adapters import adapters_off
from mlx_lm_lora_prefplus.engine.reference.bema import BemaReference
from mlx_lm_lora_prefplus.engine.reference.store import ReferenceStore
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.trainers import DPO
from tests.conftest import iterate_batches, random_rows, tiny_llama, with_lora


def schedule_of(**keys):
    keys = {"update_freq": 2, "ema_power": 0.4, "bias_power": 0.3, "lag": 3.0, **keys}
    return DPO.options(bema_for_ref_model=True, **{f"bema_{key}": value for key, value in keys.items()})


SCHEDULE = schedule_of(multiplier=1.5)


def following(model, schedule=SCHEDULE):
    return BemaReference(PlainPolicy(model), schedule, lambda batch: None)


def move(model, seed):
    """Every trained parameter somewhere else."""
    values = dict(tree_flatten(model.trainable_parameters()))
    new = [(k, v + 0.1 * mx.random.normal(v.shape, key=mx.random.key(seed + len(k)))) for k, v in values.items()]
    model.load_weights(new, strict=False)


def deltas(model):
    """Name of each layer with LoRA → what its product adds to the weight, transposed."""
    layers = {name: one for name, one in model.named_modules() if "lora_a" in one}
    return {name: np.array(one.scale * one.lora_a @ one.lora_b, np.float64) for name, one in layers.items()}


def in_float64(thetas, schedule):
    """θ of steps 0, 1, … → the reference after the last of them; None before the first update."""
    after, freq = schedule.bema_update_after, schedule.bema_update_freq
    start = average = thetas[after]
    reference = None
    for step in range(after + freq, len(thetas), freq):
        age = schedule.bema_lag + schedule.bema_multiplier * step
        beta = max(age**-schedule.bema_ema_power, schedule.bema_min_ema_multiplier)
        alpha = age**-schedule.bema_bias_power
        average = (1 - beta) * average + beta * thetas[step]
        reference = average + alpha * (thetas[step] - start)
    return reference


@pytest.mark.parametrize("after", [0, 3])
def test_weights_that_are_trained_themselves(after):
    model = tiny_llama()
    schedule = schedule_of(update_after=after, min_ema_multiplier=0.2)
    reference, name = following(model, schedule), "model.layers.0.mlp.up_proj.weight"
    thetas = [np.array(dict(tree_flatten(model.parameters()))[name], np.float64)]
    for step in range(1, 9):
        move(model, step)
        thetas.append(np.array(dict(tree_flatten(model.parameters()))[name], np.float64))
        reference.after_update(step)
        expected = in_float64(thetas, schedule) if step >= after else None
        assert (expected is None) == (not reference.parameters)
        if expected is not None:
            np.testing.assert_allclose(np.array(reference.parameters[name]), expected, atol=1e-5)


@pytest.mark.parametrize("moved", [False, True], ids=["from nothing", "from trained adapters"])
def test_products_of_lora_are_averaged(moved):
    """Log-probs of the reference are those of a model whose weights hold the average."""
    model, (batch,) = with_lora(tiny_llama(), moved=moved), iterate_batches(random_rows(4), batch_size=4, shuffle=False)
    reference, thetas = following(model), [deltas(model)]
    for step in range(1, 7):
        move(model, step)
        thetas.append(deltas(model))
        reference.after_update(step)
    expected = {name: in_float64([theta[name] for theta in thetas], SCHEDULE) for name in thetas[0]}
    (filled,) = reference.fill([batch], ReferenceStore(None, 4))
    for name, module in model.named_modules():
        if "lora_a" in module:
            module.linear.weight = module.linear.weight + mx.array(expected[name].T.astype(np.float32))
    with adapters_off(model):
        wanted = np.array(PlainPolicy(model)(batch).logps)
    assert np.allclose(np.array(filled.reference_logps), wanted, atol=1e-3)
    assert not np.allclose(wanted, np.array(PlainPolicy(model)(batch).logps), atol=1e-2)


def test_a_saved_reference_goes_on():
    model = with_lora(tiny_llama())
    reference, other = following(model), following(model)
    for step in range(1, 4):
        move(model, step)
        reference.after_update(step)
    other.restore(reference.saved())
    move(model, 4)
    for one in (reference, other):
        one.after_update(4)
    assert reference.parameters
    for name, value in reference.parameters.items():
        assert mx.array_equal(value, other.parameters[name])


def test_an_average_of_dora_layers_is_refused():
    with pytest.raises(UserError, match="bema_for_ref_model: .* train_type: lora"):
        following(with_lora(tiny_llama(), dora=True))
