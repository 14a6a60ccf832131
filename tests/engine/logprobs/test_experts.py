"""Mixtures of experts: adapters on expert layers are trained, in every class of mlx-lm that has experts."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.lora import LoRASwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_lm_lora_prefplus.engine.model.swap import calls_answered
from tests.corners import holds_at_every
from tests.engine import model_zoo

pytestmark = pytest.mark.slow

NO_ADAPTERS = {"kimi_k3": "the class reads the weight of a linear layer itself, which an adapter does not have"}


ZERO_EXPERTS = {"longcat_flash", "longcat_flash_ngram"}
"""Classes that send the tokens of experts that do nothing to expert 0, and weigh them 0."""


def adapted(name: str) -> nn.Module | None:
    """LoRA on every layer, with moved values; None where the class has no experts.

    The experts have 4 bits where their width allows (gate and up), else 32 (down).
    """
    model = model_zoo.build(name)
    if not any(isinstance(module, SwitchLinear) for module in model.modules()):
        return None
    fits = lambda _, module: isinstance(module, SwitchLinear) and module.input_dims % 32 == 0  # noqa: E731
    nn.quantize(model, 32, 4, class_predicate=fits)
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 2, "dropout": 0.0, "scale": 10.0})
    moved = tree_map(lambda value: value + 0.05 * mx.random.normal(value.shape), model.trainable_parameters())
    model.update(moved)
    return model.train()


def gradient_and_chosen(model: nn.Module, experts: dict[str, nn.Module]) -> tuple[dict[str, mx.array], dict[int, set]]:
    """The gradient of a plain loss, and for each layer of experts those that tokens went to."""
    tokens = mx.random.randint(0, model_zoo.VOCABULARY, (2, 24), key=mx.random.key(3))
    chosen: dict[int, set] = {}

    def call(module, kind, args, kwargs):
        chosen[id(module)] = set(np.array(args[1]).reshape(-1).tolist())
        return kind.__call__(module, *args, **kwargs)

    with calls_answered(call, list(experts.values())):
        mx.eval(model(tokens[:, :-1]))
    loss = lambda: nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).mean()  # noqa: E731
    return dict(tree_flatten(nn.value_and_grad(model, loss)()[1])), chosen


def test_every_chosen_expert_gets_a_gradient():
    kinds = dict[str, set[type]]()

    def trained(name):
        if (model := adapted(name)) is None:
            return
        experts = {path: one for path, one in model.named_modules() if isinstance(one, LoRASwitchLinear)}
        inner = [one for one in model.modules() if isinstance(one, SwitchLinear | QuantizedSwitchLinear)]
        assert len(experts) == len(inner) > 0, "some layers of experts have no adapters"
        kinds[name] = set(map(type, inner))
        gradient, chosen = gradient_and_chosen(model, experts)
        for path, layer in experts.items():
            got = {
                expert
                for expert in range(layer.num_experts)
                if all((gradient[f"{path}.{factor}"][expert] != 0).any() for factor in ("lora_a", "lora_b"))
            }
            assert got | ({0} & chosen[id(layer)] if name in ZERO_EXPERTS else set()) == chosen[id(layer)], path

    holds_at_every([(name,) for name in model_zoo.trainable() if name not in NO_ADAPTERS], trained)
    assert len(kinds) >= 46
    assert sum(len(own) == 2 for own in kinds.values()) >= 35, "with and without quantisation"
