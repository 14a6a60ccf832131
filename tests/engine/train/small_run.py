"""A run of the loop on a small model, and what happened in it."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import mlx.optimizers as optim
import numpy as np

from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.train.inputs import TrainingInputs
from mlx_lm_lora_prefplus.engine.train.loop import train
from mlx_lm_lora_prefplus.settings import RunSettings
from mlx_lm_lora_prefplus.trainers import CPO
from tests.conftest import iterate_batches, random_rows, tiny_llama, with_lora

ROWS = random_rows(10, seed=5)


@dataclass(frozen=True)
class Nothing:
    """A mode without keys."""


def run(
    trainer=CPO,
    options=None,
    compiled=False,
    qat=None,
    iters=6,
    batch_size=4,
    model=None,
    states=None,
    metrics=None,
    resumed=None,
    **settings,
):
    """Train a small model; returns the model and what happened, in order."""
    model = model or with_lora(tiny_llama())
    events: list[tuple] = []
    callback = SimpleNamespace(
        on_train_loss_report=lambda info: events.append(("report", info["iteration"], info)),
        on_val_loss_report=lambda info: events.append(("validate", info["iteration"], info)),
    )

    def save(iteration):
        events.append(("save", iteration))
        return Path("a"), Path("b")

    def save_best():
        events.append(("best",))
        return Path("best")

    train(
        TrainingInputs(
            trainer=trainer,
            options=options or trainer.options(),
            policy=PlainPolicy(model),
            optimizer=optim.Adam(1e-3),
            settings=RunSettings(
                **{"batch_size": batch_size, "steps_per_eval": 3, "steps_per_report": 2, "save_every": 4, **settings}
            ),
            iters=iters,
            epoch_batches=lambda epoch, first: islice(
                iterate_batches(ROWS, batch_size=batch_size, epoch=epoch), first, None
            ),
            validation=lambda: iterate_batches(ROWS, batch_size=4, shuffle=False),
            save=save,
            save_best=save_best,
            states=states,
            metrics=metrics,
            resumed=resumed,
            callback=callback,
            qat=qat(model) if qat else None,
            compiled=compiled,
        )
    )
    return model, events


def lora_b(model) -> list[np.ndarray]:
    return [np.array(module.lora_b) for _, module in model.named_modules() if "lora_b" in module]


def events_of(events, kind):
    return [event for event in events if event[0] == kind]


def without_timing(events):
    timing = ("iterations_per_second", "tokens_per_second", "peak_memory", "val_time")
    return [
        (*event[:2], {k: v for k, v in event[2].items() if k not in timing}) if len(event) > 2 else event
        for event in events
    ]
