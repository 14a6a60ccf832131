import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.model.adapters import adapters_off
from mlx_lm_lora_prefplus.engine.reference.store import ReferenceStore
from mlx_lm_lora_prefplus.engine.reference.tr_dpo import MovingReference
from mlx_lm_lora_prefplus.errors import UserError
from tests.conftest import iterate_batches, random_rows, tiny_llama, with_lora


def batch():
    return next(iterate_batches(random_rows(4), batch_size=4, shuffle=False))


def moving(model, alpha=0.6, every=2):
    return MovingReference(PlainPolicy(model), every, alpha, lambda batch: None)


def move(model, seed):
    for key, module in model.named_modules():
        if "lora_b" in module:
            for name in ("lora_a", "lora_b"):
                module[name] = 0.1 * mx.random.normal(module[name].shape, key=mx.random.key(seed + len(key)))


def deltas(model):
    """The products of the LoRA factors of each layer."""
    found = dict(tree_flatten(model.trainable_parameters()))
    return {name: found[name] @ found[name[:-1] + "b"] for name in found if name.endswith("lora_a")}


def reference_of(moving, batch):
    (filled,) = moving.fill([batch], ReferenceStore(None, 4))
    return np.array(filled.reference_logps)


def test_before_the_first_update_the_given_log_probs_hold():
    model = with_lora(tiny_llama())
    given = np.arange(8, dtype=np.float32).reshape(4, 2)
    reference = moving(model)
    reference.after_update(1)
    store = ReferenceStore(None, 4)
    store.add(np.arange(4), given)
    (filled,) = reference.fill([batch()], store)
    assert np.array_equal(np.array(filled.reference_logps), given.T.reshape(-1))


def test_lora_products_are_mixed():
    model, one = with_lora(tiny_llama()), batch()
    reference = moving(model, alpha=0.6)
    expected: dict = {}
    for step, seed in ((2, 1), (4, 2), (6, 3)):
        move(model, seed)
        reference.after_update(step)
        expected = {name: 0.6 * value + 0.4 * expected.get(name, 0) for name, value in deltas(model).items()}
    own = dict(tree_flatten(model.trainable_parameters()))
    found = reference_of(reference, one)
    assert all(mx.array_equal(own[k], v) for k, v in tree_flatten(model.trainable_parameters())), "the policy is back"

    # The same model with the mixed products merged into its weights.
    for name, module in model.named_modules():
        if "lora_a" in module:
            module.linear.weight = module.linear.weight + module.scale * expected[f"{name}.lora_a"].T
    with adapters_off(model):
        wanted = np.array(PlainPolicy(model)(one).logps)
    assert np.allclose(found, wanted, atol=1e-3)
    assert not np.allclose(found, np.array(PlainPolicy(model)(one).logps), atol=1e-2)


def test_an_alpha_of_1_copies_the_policy():
    for dora in (False, True):
        model, one = with_lora(tiny_llama(), dora=dora), batch()
        reference = moving(model, alpha=1.0)
        reference.after_update(2)
        wanted = np.array(PlainPolicy(model)(one).logps)
        move(model, 5)
        assert np.allclose(reference_of(reference, one), wanted, atol=1e-5)


def test_weights_that_are_trained_themselves_are_mixed():
    model, one = tiny_llama(), batch()
    start = dict(tree_flatten(model.trainable_parameters()))
    reference = moving(model, alpha=0.25)
    model.update({"model": {"norm": {"weight": model.model.norm.weight * 3}}})
    reference.after_update(2)
    assert mx.allclose(reference.parameters["model.norm.weight"], 1.5 * start["model.norm.weight"])
    model.update({"model": {"norm": {"weight": start["model.norm.weight"] * 1.5}}})
    wanted = np.array(PlainPolicy(model)(one).logps)
    assert np.allclose(reference_of(reference, one), wanted, atol=1e-5)


def test_the_rank_of_a_mix_is_bounded():
    model = with_lora(tiny_llama(), rank=2)
    reference = moving(model, alpha=0.9, every=1)
    for step in range(1, 12):
        move(model, step)
        reference.after_update(step)
    ranks = {value.shape[1] for name, value in reference.parameters.items() if name.endswith("lora_a")}
    assert ranks == {2 * 4}, "0.1⁴ is the first share that is negligible"


def test_a_mix_of_dora_layers_is_refused():
    with pytest.raises(UserError, match="ref_model_mixup_alpha: 1"):
        moving(with_lora(tiny_llama(), dora=True), alpha=0.5)
