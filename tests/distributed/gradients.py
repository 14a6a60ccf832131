"""Run by `mlx.launch`: the step of several processes against that of one, for every loss. Prints a JSON line each."""

import json

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlx_lm_lora_prefplus.engine.distributed import SharedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.ranks.ranks import Ranks
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from tests.conftest import iterate_batches, tiny_llama, with_lora
from tests.trainers.test_trust import EVERY_LOSS, options_for, rows_for


def step_of(policy, trainer, options, batches, ranks=None):
    """Gradient, sums and state of one optimiser step of several micro-batches."""
    units: dict[str, int] = {}
    for batch in batches:
        for unit, count in batch.units().items():
            units[unit] = units.get(unit, 0) + count
    policy.model.train()
    step, state = GradientStep(trainer, policy, options, compiled=False), trainer.initial_state(options)
    total = None
    for batch in batches:
        values, gradient, state = step(batch, units, state)
        values = values, gradient
        total = values if total is None else tree_map(mx.add, total, values)
        mx.eval(total, state)
    sums, gradient = total
    if ranks:
        gradient = ranks.sum_gradients(gradient)
    return dict(tree_flatten(gradient)), np.array(sums), {name: float(value) for name, value in state.items()}


def main():
    mx.set_default_device(mx.cpu)
    ranks = Ranks()
    for trainer, name in EVERY_LOSS:
        options = options_for(trainer, name)
        rows = rows_for(trainer, options, count=5)
        batches = list(iterate_batches(rows, batch_size=3, shuffle=False, mismatched=trainer.needs_mismatched(options)))
        policy = SharedPrefixPolicy(split_model(with_lora(tiny_llama())))
        shared = step_of(SharedPolicy(policy, ranks), trainer, options, batches, ranks)
        if not ranks.first:
            continue
        alone = step_of(policy, trainer, options, batches)
        worst = max(
            float(mx.linalg.norm(value - shared[0][key]) / mx.maximum(mx.linalg.norm(value), 1e-12))
            for key, value in alone[0].items()
        )
        told = {
            "loss": f"{trainer.mode} {name}",
            "size": ranks.size,
            "gradient_error": worst,
            "sums_error": float(np.max(np.abs(alone[1] - shared[1]) / np.maximum(np.abs(alone[1]), 1))),
            "states": [alone[2], shared[2]],
        }
        print(json.dumps(told), flush=True)


main()
