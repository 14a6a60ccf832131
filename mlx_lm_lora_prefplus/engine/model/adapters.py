"""Turn adapters off for a while: the model in memory then computes as the base model."""

from functools import cache

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...errors import UserError
from .swap import swapped_classes

_BASES = ("linear", "embedding")
"""Names under which mlx-lm's adapter layers store their base layer."""


def adapters_off(model: nn.Module):
    """Return a context in which every LoRA and DoRA layer of `model` calls only its base layer.

    The model then gives bit for bit the same results as the base model, even with quantised base layers and with DoRA.
    (A LoRA scale of 0 would not: DoRA would still renormalise the weights.)

    Raises:
        UserError: The model has an adapter layer of an unsupported kind.
    """
    return swapped_classes([(m, _base_only(type(m), adapter_base(m))) for m in adapter_layers(model)])


def adapter_layers(model: nn.Module) -> list[nn.Module]:
    """Return the LoRA and DoRA layers of a model."""
    return [module for _, module in model.named_modules() if "lora_a" in module]


def trains_only_adapters(model: nn.Module) -> bool:
    """Return whether only LoRA and DoRA parameters are trained. If so, training does not change the base model."""
    trained = sum(value.size for value in dict[str, mx.array](tree_flatten(model.trainable_parameters())).values())
    own = (layer[name].size for layer in adapter_layers(model) for name in ("lora_a", "lora_b", "m") if name in layer)
    return trained == sum(own)


def adapter_base(layer: nn.Module) -> str:
    """Return the name under which an adapter layer stores its base layer."""
    for name in _BASES:
        if name in layer:
            return name
    raise UserError(
        f"The adapter layer {type(layer).__name__} is not supported, so the reference cannot be the model without "
        "its adapters. Give the reference as a folder instead: reference_model_path: <the base model>."
    )


@cache
def _base_only(adapter: type, base: str) -> type:
    """Return a subclass of an adapter class that computes only its base layer."""

    def call(self, *args, **kwargs):
        return self[base](*args, **kwargs)

    def as_linear(self, x):
        return self[base].as_linear(x)

    return type(f"BaseOf{adapter.__name__}", (adapter,), {"__call__": call, "as_linear": as_linear})
