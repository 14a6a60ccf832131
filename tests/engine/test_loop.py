"""The loop: it drives any trainer, counts what the host counts, and never drops a gradient."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm_lora.trainer.sft_trainer import _install_qat_hooks

from mlx_lm_lora_prefplus.data.batches import iterate_batches
from mlx_lm_lora_prefplus.engine.checkpointing import gradient_checkpointing
from mlx_lm_lora_prefplus.engine.evaluate import evaluate
from mlx_lm_lora_prefplus.engine.logps import PlainPolicy
from mlx_lm_lora_prefplus.engine.loop import Training, train
from mlx_lm_lora_prefplus.engine.qat import FakeQuantization
from mlx_lm_lora_prefplus.engine.step import GradientStep
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.plugin import LossOutput, Trainer
from mlx_lm_lora_prefplus.settings import RunSettings
from mlx_lm_lora_prefplus.trainers import CPO
from tests.conftest import random_rows, tiny_llama, with_lora

ROWS = random_rows(10, seed=5)


@dataclass(frozen=True)
class Nothing:
    """A mode without keys."""


class ChosenOnly:
    """A trainer that shares nothing with ours: it raises the chosen log-probs and knows no metric."""

    mode, rows, options, losses = "chosen_only", "paired", Nothing, {}

    def needs_reference(self, options):
        return False

    def iterate_batches(self, rows, *, batch_size, epoch, seed, shuffle, multiple=1):
        return iterate_batches(rows, batch_size=batch_size, epoch=epoch, seed=seed, shuffle=shuffle, multiple=multiple)

    def loss(self, policy, batch, options):
        pairs = batch.ids.shape[0]
        return LossOutput(sums={"examples": -policy(batch).logps[:pairs].sum()}, metrics={})

    def evaluate(self, policy, batches, options):
        return evaluate(self, policy, batches, options)


def run(trainer=CPO, options=None, compiled=False, qat=None, iters=6, batch_size=4, model=None, **settings):
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

    train(
        Training(
            trainer=trainer,
            options=options or trainer.options(),
            policy=PlainPolicy(model),
            optimizer=optim.Adam(1e-3),
            settings=RunSettings(**{"steps_per_eval": 3, "steps_per_report": 2, "save_every": 4, **settings}),
            iters=iters,
            epoch_batches=lambda epoch: trainer.iterate_batches(
                ROWS, batch_size=batch_size, epoch=epoch, seed=0, shuffle=True
            ),
            validation=lambda: trainer.iterate_batches(ROWS, batch_size=4, epoch=0, seed=0, shuffle=False),
            save=save,
            callback=callback,
            qat=qat(model) if qat else None,
            compiled=compiled,
        )
    )
    return model, events


def lora_b(model) -> list[np.ndarray]:
    return [np.array(module.lora_b) for _, module in model.named_modules() if "lora_b" in module]


def test_a_trainer_of_another_make_is_driven():
    assert isinstance(ChosenOnly(), Trainer)
    _, events = run(ChosenOnly(), Nothing(), iters=30, steps_per_report=10)
    losses = [info["train_loss"] for kind, _, info in (e for e in events if e[0] == "report")]
    assert losses[-1] < losses[0]


def test_order_of_events_counts_micro_batches():
    _, events = run(gradient_accumulation_steps=3)
    assert [event[:2] for event in events] == [
        ("validate", 1),
        ("report", 2),
        ("validate", 3),
        ("report", 4),
        ("save", 4),
        ("validate", 6),
        ("report", 6),
        ("save", None),
    ]


@pytest.mark.parametrize(("iters", "accumulation", "updates"), [(3, 4, 1), (8, 4, 2), (9, 4, 3), (2, 1, 2)])
def test_no_gradient_is_dropped(iters, accumulation, updates, monkeypatch):
    calls = []
    real = optim.Adam.update
    monkeypatch.setattr(optim.Adam, "update", lambda *args: (calls.append(1), real(*args)))
    model, _ = run(iters=iters, gradient_accumulation_steps=accumulation)
    assert len(calls) == updates
    assert all(np.abs(a - b).max() > 0 for a, b in zip(lora_b(model), lora_b(with_lora(tiny_llama())), strict=True))


def test_an_epoch_sees_every_row_once(monkeypatch):
    seen = []
    real = GradientStep.__call__
    monkeypatch.setattr(
        GradientStep,
        "__call__",
        lambda self, batch, units: (seen.extend(batch.ids.tolist()), real(self, batch, units))[1],
    )
    run(iters=6)  # two epochs of three batches
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_speed_does_not_count_validation(monkeypatch):
    """On a clock that only evaluation (100 s each) and forwards (1 s each) move: two steps in two seconds."""
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(perf_counter=lambda: clock.now, monotonic=lambda: clock.now)
    for module in ("loop", "laps"):
        monkeypatch.setattr(f"mlx_lm_lora_prefplus.engine.{module}.time", fake)
    step, evaluation = GradientStep.__call__, type(CPO).evaluate

    def passing(seconds, function):
        def call(*args):
            clock.now += seconds
            return function(*args)

        return call

    monkeypatch.setattr(GradientStep, "__call__", passing(1, step))
    monkeypatch.setattr(type(CPO), "evaluate", passing(100, evaluation))
    _, events = run(iters=2, steps_per_report=2)
    (report,) = [event[2] for event in events if event[0] == "report"]
    assert report["iterations_per_second"] == 1.0
    assert report["tokens_per_second"] == report["trained_tokens"] / 2
    assert [event[2]["val_time"] for event in events if event[0] == "validate"] == [100, 100]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_qat_starts_and_pauses_as_asked(compiled, monkeypatch):
    """Every batch has one shape here, so a graph compiled once would never see the change."""
    same = [{"prompt": [1, 2], "chosen": [3, 4], "rejected": [5, 6]}] * 10
    monkeypatch.setitem(globals(), "ROWS", same)
    settings = SimpleNamespace(qat_enable=True, qat_bits=2, qat_group_size=32)

    def trained(start, interval):
        qat = lambda model: FakeQuantization(  # noqa: E731
            model, lambda it: _install_qat_hooks(it, settings), start, interval
        )
        return lora_b(run(qat=qat, compiled=compiled, iters=4, batch_size=10)[0])

    plain = lora_b(run(compiled=compiled, iters=4, batch_size=10)[0])
    results = [trained(1, 1), trained(2, 1), trained(2, 2), trained(4, 1)]
    unused = trained(5, 1)
    assert all(np.array_equal(a, b) for a, b in zip(unused, plain, strict=True))
    for i, one in enumerate(results):
        for other in [*results[i + 1 :], plain]:
            assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_gradient_checkpointing_is_exact_and_undone():
    layer = type(tiny_llama().layers[0])
    call = layer.__call__
    plain, checkpointed = run()[0], run(grad_checkpoint=True)[0]
    for a, b in zip(lora_b(plain), lora_b(checkpointed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert layer.__call__ is call
    with pytest.raises(ZeroDivisionError), gradient_checkpointing(plain):
        assert layer.__call__ is not call
        raise ZeroDivisionError
    assert layer.__call__ is call


def test_compiled_training_is_the_same():
    for a, b in zip(lora_b(run()[0]), lora_b(run(compiled=True)[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_clipping_keeps_the_dtype_of_the_weights():
    model = tiny_llama()
    model.set_dtype(mx.bfloat16)
    model, _ = run(model=model, max_grad_norm=1e-3)
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {mx.bfloat16}


def test_dropout_is_off_in_evaluation_and_on_in_training():
    model = with_lora(tiny_llama(), dropout=0.5)
    batches = lambda: CPO.iterate_batches(ROWS, batch_size=4, epoch=0, seed=0, shuffle=False)  # noqa: E731
    model.train()
    one, two = (CPO.evaluate(PlainPolicy(model), batches(), CPO.options()) for _ in range(2))
    assert one == two
    assert model.training
    first, second = (PlainPolicy(model)(next(batches())).logps for _ in range(2))
    assert not mx.array_equal(first, second)


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    model = with_lora(tiny_llama())
    before = lora_b(model)

    class Poison(ChosenOnly):
        def loss(self, policy, batch, options):
            logps = policy(batch).logps
            return LossOutput(sums={"examples": mx.sqrt(logps * 0).sum()}, metrics={})

    with pytest.raises(UserError, match="The gradient is not finite at iteration 1"):
        run(Poison(), Nothing(), model=model)
    assert all(np.array_equal(a, b) for a, b in zip(lora_b(model), before, strict=True))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_is_a_mean_over_pairs_however_they_are_cut(batch_size):
    """Ten pairs in uneven batches weigh as in one; the host weighs a batch by its tokens."""
    policy, options = PlainPolicy(with_lora(tiny_llama())), CPO.options(cpo_alpha=0.5)
    means = [
        CPO.evaluate(policy, CPO.iterate_batches(ROWS, batch_size=size, epoch=0, seed=0, shuffle=False), options)
        for size in (len(ROWS), batch_size)
    ]
    assert means[1] == pytest.approx(means[0], rel=1e-5, abs=1e-6)


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(UserError, match="no rows to evaluate"):
        evaluate(CPO, PlainPolicy(tiny_llama()), iter([]), CPO.options())
