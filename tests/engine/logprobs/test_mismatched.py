"""Completions of other rows: their log-probs are exact, no gradient is taken of them, and they cost no backward."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.data.batches.slicing import slice_batch
from mlx_lm_lora_prefplus.engine.logprobs.chunked import ChunkedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.frozen_trunk import find_trunk
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep, recomputing
from mlx_lm_lora_prefplus.engine.model.adapters import adapters_off
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.reference.in_step import StepReference
from mlx_lm_lora_prefplus.engine.reference.precompute import reference_logps, with_reference
from mlx_lm_lora_prefplus.engine.reference.store import ReferenceStore
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.trainers import BCO, KTO
from tests.conftest import iterate_batches, random_rows, tiny_llama, with_lora
from tests.engine.logprobs.test_chunked import recurrent, windowed

OPTIONS = KTO.options(beta=0.2, undesirable_weight=1.3)
ROWS = [
    {"prompt": row["prompt"], "completion": row["chosen"], "label": float(i % 3 == 0)}
    for i, row in enumerate([*random_rows(5, seed=3, longest=14), *random_rows(1, seed=9, longest=30)])
]

WAYS = {
    "plain": (lambda halves: PlainPolicy(halves.model), tiny_llama),
    "head": (HeadPolicy, tiny_llama),
    "prefix": (SharedPrefixPolicy, tiny_llama),
    "prefix, windows": (SharedPrefixPolicy, windowed),
    "pair by pair": (PairwisePrefixPolicy, tiny_llama),
    "pair by pair, states": (PairwisePrefixPolicy, recurrent),
    "head, in groups": (partial(HeadPolicy, call_tokens=0), tiny_llama),
    "prefix, in groups": (partial(SharedPrefixPolicy, call_tokens=3), windowed),
    "pair by pair, in groups": (partial(PairwisePrefixPolicy, call_tokens=0), recurrent),
    "packed": (partial(PackedPolicy, always=True), tiny_llama),
    "pieces": (lambda halves: ChunkedPolicy(halves, 4), tiny_llama),
    "pieces, ended completions left out": (lambda halves: ChunkedPolicy(halves, 4, call_tokens=0), windowed),
    "pieces, states": (lambda halves: ChunkedPolicy(halves, 3, True), recurrent),
}


def kto_batch(multiple=1):
    (batch,) = iterate_batches(ROWS, batch_size=len(ROWS), shuffle=False, multiple=multiple, mismatched=True)
    assert batch.mismatched is not None
    return batch.with_reference_logps(mx.linspace(-60, -55, 2 * len(ROWS)))


def naive(model, batch):
    """The loss of KTO from plain forwards, written out, and its gradient."""
    plain = PlainPolicy(model)
    estimate = (plain(batch.mismatched).logps - batch.mismatched.reference_logps).mean()
    assert estimate.item() > 1, "an estimate below 0 counts as 0, so nothing of other rows would show"

    def loss():
        own = plain(batch._replace(mismatched=None)).logps - batch.reference_logps
        other = plain(batch.mismatched).logps - batch.mismatched.reference_logps
        z = mx.maximum(mx.stop_gradient(other).mean(), 0)
        sign = mx.where(batch.columns["label"] > 0, 1.0, -1.0)
        return (mx.where(sign > 0, 1.0, 1.3) * mx.sigmoid(-0.2 * sign * (own - z))).mean()

    value, gradient = nn.value_and_grad(model, loss)()
    return value.item(), dict(tree_flatten(gradient))


def ours(policy, batch, compiled=False, reference=None):
    step = GradientStep(KTO, policy, OPTIONS, compiled, reference)
    values, gradient, _ = step(batch, batch.units())
    loss = dict(zip(step.layout, np.array(values).tolist(), strict=True))
    (value,) = (value for name, value in loss.items() if "loss" in str(name))
    return value / len(ROWS), dict(tree_flatten(gradient))


def assert_close(found, wanted, tolerance=1e-4):
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    for name, value in wanted[1].items():
        error = mx.linalg.norm(found[1][name] - value).item()
        assert error <= tolerance * (mx.linalg.norm(value).item() + 1e-6), name


@pytest.mark.parametrize("name", [*WAYS, "head, checkpointed"])
def test_loss_and_gradient_are_those_of_plain_forwards(name):
    way, make = WAYS[name.removesuffix(", checkpointed")]
    model = with_lora(make()).train()
    policy, batch = way(split_model(model)), kto_batch()
    wanted = naive(model, batch)
    assert max(mx.abs(value).max().item() for value in wanted[1].values()) > 0
    if name.endswith("checkpointed"):
        with recomputing(model, Keep.INPUTS):
            return assert_close(ours(policy, batch), wanted)
    assert_close(ours(policy, batch), wanted)


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("name", ["head", "prefix", "packed"])
def test_compiled_and_with_all_weights_trained(name):
    model = tiny_llama().train()
    policy, batch = WAYS[name][0](split_model(model)), kto_batch(multiple=8)
    wanted = naive(model, batch)
    assert_close(ours(policy, batch), wanted)
    assert_close(ours(policy, batch, compiled=True), wanted)


@pytest.mark.parametrize("name", WAYS)
def test_evaluation_gives_the_bits_of_training(name):
    """So that a policy begins at its reference, whose pass is one of evaluation."""
    way, make = WAYS[name]
    model = with_lora(make(), moved=False)
    policy, batch = way(split_model(model.eval())), kto_batch()
    reference = policy(batch).mismatched_logps
    model.train()
    assert mx.array_equal(policy(batch, statistics=True).mismatched_logps, reference)


def test_no_gradient_is_taken_of_them():
    policy, batch = SharedPrefixPolicy(split_model(with_lora(tiny_llama()).train())), kto_batch()
    _, gradient = nn.value_and_grad(policy.model, lambda: policy(batch).mismatched_logps.sum())()
    assert all(not mx.any(value).item() for _, value in tree_flatten(gradient))


def products(policy, trainer, batch, tmp_path) -> int:
    """Matrix products in the graph of a step."""
    step = GradientStep(trainer, policy, trainer.options(), False)
    file = tmp_path / f"{trainer.mode}.dot"
    values, gradient, _ = step(batch, batch.units(), trainer.initial_state(trainer.options()))
    mx.export_to_dot(str(file), *[value for _, value in tree_flatten({"values": values, "gradient": gradient})])
    return file.read_text().count("Matmul")


def test_they_add_a_forward_after_the_prompt_and_no_backward(tmp_path):
    policy, batch = SharedPrefixPolicy(split_model(with_lora(tiny_llama()).train())), kto_batch()
    bco, kto = (products(policy, trainer, batch._replace(**more), tmp_path) for trainer, more in
                ((BCO, {"mismatched": None}), (KTO, {})))  # fmt: skip
    forward = tmp_path / "forward.dot"
    policy.model.eval()
    alone = batch._replace(mismatched=None)
    mx.export_to_dot(str(forward), policy(alone).logps)
    assert bco < kto <= bco + forward.read_text().count("Matmul")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["head", "prefix", "packed", "pair by pair", "pieces"])
@pytest.mark.parametrize("compiled", [False, True])
def test_their_reference_comes_in_the_step(name, compiled):
    if compiled and name in ("pair by pair", "pieces"):
        pytest.skip("this way looks at lengths, or needs more than a trace gives")
    policy = WAYS[name][0](split_model(with_lora(tiny_llama(layers=4), layers=2).train()))
    batch, known = kto_batch(), ReferenceStore(None, len(ROWS))
    with adapters_off(policy.model):
        reference_logps(policy, [batch], len(ROWS), store=known)
    (filled,) = with_reference([batch], known)
    wanted = ours(policy, filled)
    trunk = find_trunk(policy.model, policy.halves.head_names)
    assert trunk is not None
    store = ReferenceStore(None, len(ROWS), growing=True)
    in_step = StepReference(policy, trunk, lambda batch: None, store)
    for _ in range(2):  # computed, then known
        assert_close(ours(policy, batch, compiled, in_step), wanted, 1e-3 if compiled else 0)
        np.testing.assert_allclose(store.logps, known.logps, rtol=1e-5 if compiled else 0)


def test_slices_take_theirs_along():
    batch = kto_batch()
    part = slice_batch(batch, 2, 5)
    assert part.mismatched is not None and part.mismatched.ids.tolist() == part.ids.tolist() == [2, 3, 4]
    policy = PlainPolicy(tiny_llama().eval())
    np.testing.assert_allclose(
        np.array(policy(part).mismatched_logps), np.array(policy(batch).mismatched_logps)[2:5], rtol=1e-5
    )
    assert mx.array_equal(part.all_reference_logps, mx.concatenate(
        [batch.reference_logps[2:5], batch.mismatched.reference_logps[2:5]]))  # fmt: skip
