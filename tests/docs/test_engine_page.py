"""docs/engine-in-one-page.md, run: the plain loop against the engine, and the script made of our pieces."""

import math
import re
from itertools import islice

import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.data.batches.collate import planned_batches
from mlx_lm_lora_prefplus.data.batches.lengths import lengths_of
from mlx_lm_lora_prefplus.data.batches.plan import plan_epoch
from mlx_lm_lora_prefplus.engine.model.adapters import adapters_off
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.engine.reference.precompute import reference_logps, with_reference
from mlx_lm_lora_prefplus.engine.reference.store import ReferenceStore
from mlx_lm_lora_prefplus.engine.train.inputs import TrainingInputs
from mlx_lm_lora_prefplus.engine.train.loop import train
from mlx_lm_lora_prefplus.settings import RunSettings
from mlx_lm_lora_prefplus.trainers import DPO
from tests.conftest import random_rows, tiny_llama, with_lora, write_pairs
from tests.paths import DOCS

PAGE = (DOCS / "engine-in-one-page.md").read_text(encoding="utf-8")
ROWS = random_rows(8, seed=3)


def block(number: int) -> dict:
    """The names that a code block of the page defines."""
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[number], names)
    return names


def weights(model) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.trainable_parameters())}


def test_the_plain_loop_and_the_engine_end_with_the_same_weights():
    plan = [[int(number) for number in step] for step in plan_epoch(lengths_of(ROWS), batch_size=4)]
    plain, model = (with_lora(tiny_llama()) for _ in range(2))
    start = weights(model)
    block(0)["train"](plain, ROWS, plan, beta=0.5, learning_rate=1e-3)

    policy, settings = choose_policy(model, RunSettings()).policy, RunSettings(batch_size=4)
    store = ReferenceStore(None, len(ROWS))
    with adapters_off(model):
        reference_logps(policy, planned_batches(ROWS, map(np.array, plan)), len(ROWS), store=store)
    train(
        TrainingInputs(
            trainer=DPO,
            options=DPO.options(beta=0.5),
            policy=policy,
            optimizer=optim.Adam(1e-3),
            settings=settings,
            iters=len(plan),
            epoch_batches=lambda epoch, first: islice(
                with_reference(planned_batches(ROWS, map(np.array, plan)), store), first, None
            ),
            validation=None,
            save=None,
        )
    )
    found = weights(model)
    assert any(np.abs(value - start[name]).max() > 1e-3 for name, value in found.items()), "something was trained"
    for name, value in weights(plain).items():
        assert np.abs(value - found[name]).max() < 5e-5, name


@pytest.mark.slow
def test_the_script_trains(model_folder, tmp_path, path_of_a_cpu, monkeypatch):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "cache"))
    write_pairs(tmp_path / "data", train=12)
    script = block(1)["train_folder"]
    _, losses = script(str(model_folder), str(tmp_path / "data"), epochs=6, learning_rate=1e-2, loss_type="sigmoid")
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5) and losses[-1] < 0.5 * losses[0]


def test_they_are_short():
    first, second = (
        len([line for line in code.splitlines() if line.strip()])
        for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    )
    assert first <= 45 and second <= 65
