"""The policy without its adapters: the same weights in memory, seen as the model they were put on."""

from functools import cache

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...errors import UserError
from .swap import swapped_classes

_BASES = ("linear", "embedding")
"""Under these names mlx-lm's adapter layers hold the layer they adapt."""


def adapters_off(model: nn.Module):
    """A context in which every LoRA and DoRA layer of `model` calls the layer it adapts and nothing else.

    Bit-exact, for quantised bases and DoRA too (a scale of 0 is not: DoRA renormalises).

    Raises:
        UserError: an adapter layer of a kind that is not known here.
    """
    return swapped_classes([(m, _base_only(type(m), adapter_base(m))) for m in adapter_layers(model)])


def adapter_layers(model: nn.Module) -> list[nn.Module]:
    """The LoRA and DoRA layers of a model."""
    return [module for _, module in model.named_modules() if "lora_a" in module]


def trains_only_adapters(model: nn.Module) -> bool:
    """Whether nothing is trained but what belongs to LoRA and DoRA layers, so that the model without them stays."""
    trained = sum(value.size for value in dict[str, mx.array](tree_flatten(model.trainable_parameters())).values())
    own = (layer[name].size for layer in adapter_layers(model) for name in ("lora_a", "lora_b", "m") if name in layer)
    return trained == sum(own)


def adapter_base(layer: nn.Module) -> str:
    """The name under which an adapter layer holds the layer it adapts."""
    for name in _BASES:
        if name in layer:
            return name
    raise UserError(
        f"The adapter layer {type(layer).__name__} is not known, so the reference cannot be the model without its "
        "adapters. Give the reference as a folder instead: reference_model_path: <the base model>."
    )


@cache
def _base_only(adapter: type, base: str) -> type:
    """A subclass of an adapter class whose calls go straight to its base layer."""

    def call(self, *args, **kwargs):
        return self[base](*args, **kwargs)

    def as_linear(self, x):
        return self[base].as_linear(x)

    return type(f"BaseOf{adapter.__name__}", (adapter,), {"__call__": call, "as_linear": as_linear})
