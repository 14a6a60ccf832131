"""The way chosen for a model class is exact on batches that the probe has not seen.

A choice of classes always; all of them with MLX_LM_LORA_PREFPLUS_ALL_MODELS=1 (some minutes).
"""

import os
from copy import copy

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_lm_lora_prefplus.data.batches.packing import ALWAYS, SHARED
from mlx_lm_lora_prefplus.engine.logprobs import head
from mlx_lm_lora_prefplus.engine.logprobs.frozen_trunk import reference_logps_sharing_trunk
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.engine.model.adapters import adapters_off
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.engine import model_zoo
from tests.engine.exactness import (
    BATCHES,
    FLOAT32,
    FLOAT64,
    WAYS,
    batch_of,
    error,
    examine,
    gradient,
    plain_gradient,
)
from tests.engine.support_table import in_double
from tests.paths import DOCS

pytestmark = pytest.mark.slow

ALL = os.environ.get("MLX_LM_LORA_PREFPLUS_ALL_MODELS") == "1"
CHOICE = [
    *(
        "llama",
        "qwen3",
        "qwen3_moe",
        "gemma2",
        "gemma3_text",
        "phi3",
        "olmo2",
        "mamba2",
        "granitemoehybrid",
        "qwen3_next",
    ),
    *("deepseek_v3", "gpt_oss", "cohere", "gpt2", "afm7", "llama4", "ministral3", "longcat_flash_ngram"),
]
NAMES = model_zoo.trainable() if ALL else CHOICE
DOUBLE = NAMES if ALL else ["llama", "gemma2", "gpt_oss", "ministral3", "afm7"]


def table() -> dict[str, list[str]]:
    """Class → way and errors, from the docs."""
    lines = (DOCS / "models.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: rest for name, *rest in cells}


@pytest.mark.parametrize("name", NAMES)
def test_exact(name):
    found = examine(model_zoo.build(name))
    assert found.error <= FLOAT32, found.words
    assert WAYS[found.way] == table()[name][0], f"{found.words}; if that is right, write docs/models.md anew"


@pytest.mark.parametrize("name", DOUBLE)
def test_exact_in_float64(name):
    """Of classes that convert to float32 inside: float32's rounding, and no more than docs/models.md says of it."""
    stated = float(table()[name][2])
    assert in_double(name).error <= max(FLOAT64, min(10 * stated, 1e-5))


NO_ADAPTERS = {"gemma3n", "kimi_k3"}
"""Classes that read the weight of a linear layer themselves, which an adapter of mlx-lm does not have."""


def with_adapters(name: str, kind: str, layers: int = -1) -> nn.Module:
    """LoRA or DoRA on the last so many layers (−1: all), with moved values, on a base of 32 or 4 bits."""
    model = model_zoo.build(name)
    if kind == "4 bits":
        fits = lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[-1] % 32 == 0 and not fused(m)  # noqa: E731
        nn.quantize(model, group_size=32, bits=4, class_predicate=fits)
    model.freeze()
    linear_to_lora_layers(model, layers, {"rank": 2, "dropout": 0.0, "scale": 10.0}, use_dora=kind == "dora")
    moved = tree_map(lambda value: value + 0.05 * mx.random.normal(value.shape), model.trainable_parameters())
    model.update(moved)
    return model


def fused(module: nn.Module) -> bool:
    """AFM's linear layers of several outputs, which take no `mode` of quantisation."""
    return type(module).__name__ == "FusedLinear"


@pytest.mark.parametrize("kind", ["lora", "dora", "4 bits"])
@pytest.mark.parametrize("name", NAMES if ALL else ["gemma2", "gpt_oss", "mamba2", "deepseek_v3"])
def test_exact_with_adapters(name, kind, monkeypatch):
    """The head is frozen here, and computed in blocks of few tokens."""
    monkeypatch.setitem(head.BLOCK_BYTES, "cpu", 4 * 1024)
    if name in NO_ADAPTERS or (name, kind) == ("afm7", "dora"):
        pytest.skip("mlx-lm's adapters do not work on it")
    try:
        model = with_adapters(name, kind)
    except ValueError as refusal:  # DoRA on experts
        assert kind == "dora"
        pytest.skip(f"mlx-lm: {refusal}")
    found = examine(model)
    assert found.error <= FLOAT32, found.words
    assert WAYS[found.way] == table()[name][0], found.words


@pytest.mark.parametrize("name", NAMES if ALL else ["gemma2", "gpt_oss", "mamba2", "qwen3_next", "deepseek_v3"])
def test_layers_that_compute_again_are_exact(name):
    """And none is refused: what the probe proves without them it proves with them."""
    if name in NO_ADAPTERS:
        pytest.skip("mlx-lm's adapters do not work on it")
    model = with_adapters(name, "lora").train()
    policies = []
    for keep in (Keep.PRODUCTS, Keep.INPUTS):
        policies.append(choose_policy(model, RunSettings.model_validate({}), keep=keep).policy)
        assert policies[-1].keep is (Keep.ALL if name in NOT_AGAIN else keep)
    are_exact(policies, model)


def are_exact(policies: list, model: nn.Module) -> None:
    for rows in BATCHES.values():
        batch = batch_of(rows)
        wanted = plain_gradient(model, batch)
        for policy in policies:
            assert error(gradient(policy, batch), wanted) <= FLOAT32, policy.keep


@pytest.mark.parametrize("name", NAMES if ALL else ["llama", "gemma3_text", "gemma4_text", "gpt_oss", "deepseek_v3"])
def test_packed_rows_are_exact(name):
    if name in NO_ADAPTERS:
        pytest.skip("mlx-lm's adapters do not work on it")
    model = with_adapters(name, "lora").train()
    policies = []
    for keep in Keep:
        choice = choose_policy(model, RunSettings.model_validate({}), keep=keep, packs=True)
        assert isinstance(choice.policy, PackedPolicy) or ALL, choice.description
        if isinstance(choice.policy, PackedPolicy):
            policies += [copy(choice.policy), choice.policy]
            policies[-2].costs, policies[-1].costs = ALWAYS, SHARED
    are_exact(policies, model)


NOT_AGAIN: set[str] = set()
"""Classes whose layers pass gradients to each other outside of arguments, results and caches."""

NO_TRUNK = {"nanbeige"}
"""Classes that run their layers more than once: what comes out of the lower ones depends on the upper ones."""


@pytest.mark.parametrize("name", NAMES if ALL else ["gemma2", "gpt_oss", "mamba2", "longcat_flash_ngram", "nanbeige"])
def test_one_run_of_the_trunk_serves_policy_and_reference(name):
    """To the bit what each gives by a run of its own."""
    if name in NO_ADAPTERS:
        pytest.skip("mlx-lm's adapters do not work on it")
    model = with_adapters(name, "lora", layers=2).train()
    choice = choose_policy(model, RunSettings.model_validate({}))
    assert (choice.trunk is None) == (name in NO_TRUNK)
    for rows in BATCHES.values() if choice.trunk else ():
        batch = batch_of(rows)
        reference, policy = reference_logps_sharing_trunk(choice.policy, choice.trunk, batch, None, adapters_off(model))
        with adapters_off(model):
            assert mx.array_equal(reference, choice.policy(batch).logps)
        assert mx.array_equal(policy(batch).logps, choice.policy(batch).logps)
        wanted = gradient(choice.policy, batch)
        for tensor, value in gradient(policy, batch).items():
            assert mx.array_equal(value, wanted[tensor]), tensor


def test_every_class_is_accounted_for():
    """In the table with a way that is exact, or named with a reason."""
    rows = table()
    assert {name for name in model_zoo.names() if name not in rows} == set()
    for name in model_zoo.trainable():
        assert float(rows[name][1]) <= FLOAT32
    for name, reason in (model_zoo.NOT_BUILT | model_zoo.NOT_TRAINED).items():
        assert rows[name] == [reason]


@pytest.mark.parametrize("name", ["deepseek_v41", "recurrent_gemma"])
def test_classes_that_cannot_be_trained_still_cannot(name):
    with pytest.raises((ValueError, AttributeError)):
        examine(model_zoo.build(name))


@pytest.mark.skipif(not ALL, reason="its vocabulary cannot be small")
def test_a_class_that_is_not_causal_is_named():
    found = examine(model_zoo.build("phi3small"))
    assert found.way is PlainPolicy and "padding changes its log-probs" in found.words


def test_windows_lie_beyond_the_probe():
    """Else this would not show that a mask of a window is right that the probe never saw in action."""
    from mlx_lm_lora_prefplus.engine.probe.verify import LENGTHS

    assert max(prompt + max(rest) for prompt, *rest in LENGTHS) < model_zoo.WINDOW


@pytest.mark.parametrize("rows", [[(3, 2, 2)] * 2, [(3, 2, 2)] * 4, [(9, 2, 4), (2, 5, 1), (6, 3, 3), (4, 4, 4)]])
def test_as_many_rows_as_heads(rows):
    """Rows that equal key heads, all heads, and neither."""
    for heads in (2, 4, 8):
        found = examine(model_zoo.build("llama", num_attention_heads=8, num_key_value_heads=heads), {"rows": rows})
        assert found.way is SharedPrefixPolicy and found.error <= FLOAT32
        assert (
            examine(model_zoo.build("gemma2", num_attention_heads=8, num_key_value_heads=heads), {"": rows}).error
            <= FLOAT32
        )
