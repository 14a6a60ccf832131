"""A graph for each shape: those that were used last are kept, and the others leave nothing in memory."""

import gc
import weakref

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.data.batches.plan import COMPILED_MULTIPLE
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory import recompute
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.train import compiled
from mlx_lm_lora_prefplus.engine.train.compiled import FEWEST, compile_by_shape, graph_limit, graphs_made
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.trainers import DPO, KTO
from tests.conftest import iterate_batches, random_rows, tiny_llama, with_lora


@pytest.mark.usefixtures("compiling")
def test_the_graphs_that_were_used_last_are_kept():
    traced = []

    def double(tree, optional):
        traced.append(tree["a"].size)
        return tree["a"] @ mx.eye(1)

    function = compile_by_shape(double, [], limit=2)
    for size in (1, 2, 1, 3, 1, 2):
        assert mx.array_equal(function({"a": mx.ones((size, 1))}, None), mx.ones((size, 1)))
    assert traced == [1, 2, 3, 2], "1 was used again before there was no room for 2"


def test_how_many_graphs_are_made():
    assert [graphs_made([1, 2, 1, 3, 1, 2], limit) for limit in (1, 2, 3)] == [6, 4, 3]


@pytest.mark.parametrize(
    ("way", "keep", "layers", "memory", "graphs"),
    [
        (PackedPolicy, Keep.ALL, 32, 16e9, 127),
        (PackedPolicy, Keep.PRODUCTS, 32, 16e9, 54),
        (SharedPrefixPolicy, Keep.PRODUCTS, 32, 16e9, 27),
        (SharedPrefixPolicy, Keep.INPUTS, 96, 4e9, FEWEST),
    ],
)
def test_graphs_take_a_share_of_the_memory(monkeypatch, way, keep, layers, memory, graphs):
    monkeypatch.setattr(compiled, "total_memory", lambda: int(memory))
    model = tiny_llama()
    model.model.layers = model.layers * (layers // len(model.layers))
    policy = way(split_model(model))
    policy.keep = keep
    assert graph_limit(policy) == graphs


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("trainer", [DPO, KTO], ids=lambda trainer: trainer.mode)
@pytest.mark.parametrize("keep", [Keep.PRODUCTS, Keep.INPUTS])
def test_a_graph_that_is_dropped_leaves_nothing_in_memory(keep, trainer, monkeypatch):
    """Its functions do not refer to arrays that refer to the functions."""
    alive = weakref.WeakSet()

    class Watched(recompute._Function):
        def __init__(self, *given):
            super().__init__(*given)
            alive.add(self)

    monkeypatch.setattr(recompute, "_Function", Watched)
    policy = SharedPrefixPolicy(split_model(with_lora(tiny_llama()).train()))
    policy.keep = keep
    options = trainer.options()
    step = GradientStep(trainer, policy, options, compiled=True)
    rows = random_rows(2)
    if trainer is KTO:
        rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": float(i)} for i, row in enumerate(rows)]
    (batch,) = iterate_batches(rows, batch_size=2, multiple=COMPILED_MULTIPLE, mismatched=trainer is KTO)
    mx.eval(step(batch, batch.units(), trainer.initial_state(options)))
    assert alive
    del step
    gc.collect()
    assert not alive
