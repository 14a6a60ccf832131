"""The loop: it drives any trainer, counts what the host counts, and never drops a gradient."""

import json
import os
import signal
from dataclasses import dataclass
from types import SimpleNamespace

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm_lora.trainer.sft_trainer import _install_qat_hooks

from mlx_lm_lora_prefplus.engine.files.metrics_file import MetricsFile
from mlx_lm_lora_prefplus.engine.files.run_state import StateFiles, newest_state, read_state
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.model.qat import FakeQuantization
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.plugin import LossOutput, Trainer
from mlx_lm_lora_prefplus.trainers import CPO, BaseTrainer
from tests.conftest import iterate_batches, tiny_llama, with_lora
from tests.engine.train import small_run
from tests.engine.train.small_run import ROWS, Nothing, events_of, lora_b, run, without_timing


class ChosenOnly(BaseTrainer):
    """A trainer that has a loss alone: it raises the chosen log-probs and knows no metric."""

    mode, options = "chosen_only", Nothing

    def loss(self, policy, batch, options, state):
        pairs = batch.ids.shape[0]
        return LossOutput(sums={"examples": -policy(batch).logps[:pairs].sum()}, metrics={})


def test_a_trainer_of_another_make_is_driven():
    assert isinstance(ChosenOnly(), Trainer)
    _, events = run(ChosenOnly(), Nothing(), iters=30, steps_per_report=10)
    losses = [info["train_loss"] for kind, _, info in (e for e in events if e[0] == "report")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("iters", [1, 2, 6])
def test_the_saved_weights_were_validated(iters, monkeypatch):
    """And the first validation is of those before any update, whatever the number of iterations."""
    seen, start = [], lora_b(with_lora(tiny_llama()))

    def evaluate(self, policy, batches, options, state):
        seen.append([np.array(weights) for weights in lora_b(policy.model)])
        return {"loss": 1.0}

    monkeypatch.setattr(type(CPO), "evaluate", evaluate)
    model, events = run(iters=iters)
    validated = {1: [1, 1], 2: [1, 2], 6: [1, 3, 6]}
    assert [event[1] for event in events if event[0] == "validate"] == validated[iters]
    assert all(np.array_equal(a, b) for a, b in zip(seen[0], start, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(seen[-1], lora_b(model), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(seen[0], seen[-1], strict=True))


def test_speed_does_not_count_validation(monkeypatch):
    """On a clock that only evaluation (100 s each) and forwards (1 s each) move: two steps in two seconds."""
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(perf_counter=lambda: clock.now, monotonic=lambda: clock.now)
    for module in ("evaluate", "interrupts"):
        monkeypatch.setattr(f"mlx_lm_lora_prefplus.engine.train.{module}.time", fake)
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


@pytest.mark.usefixtures("compiling")
@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_qat_starts_and_pauses_as_asked(compiled, monkeypatch):
    """Every batch has one shape here, so a graph compiled once would never see the change."""
    same = [{"prompt": [1, 2], "chosen": [3, 4], "rejected": [5, 6]}] * 10
    monkeypatch.setattr(small_run, "ROWS", same)
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


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    model = with_lora(tiny_llama())
    before = lora_b(model)

    class Poison(ChosenOnly):
        def loss(self, policy, batch, options, state):
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
        CPO.evaluate(policy, iterate_batches(ROWS, batch_size=size, shuffle=False), options, {})
        for size in (len(ROWS), batch_size)
    ]
    assert means[1] == pytest.approx(means[0], rel=1e-5, abs=1e-6)


class Poisoned(ChosenOnly):
    """Its sums, or its gradients, are not finite where a row of `bad` is in the batch."""

    def __init__(self, bad, gradient=False):
        self.bad, self.gradient = set(bad), gradient

    def loss(self, policy, batch, options, state):
        logps = policy(batch).logps
        if self.bad & set(batch.ids.tolist()) and policy.model.training:
            logps = logps + (mx.sqrt(0 * logps) if self.gradient else float("nan"))
        return LossOutput(sums={"examples": -logps.sum()}, metrics={})


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_what_is_not_finite_stops_with_rows_step_and_settings(gradient):
    what = "gradient" if gradient else "loss"
    with pytest.raises(UserError, match=rf"The {what} is not finite at iteration \d on rows \[(3|.* 3)[,\]]") as caught:
        run(Poisoned([3], gradient), Nothing(), max_grad_norm=2.0)
    assert caught.match(r"learning_rate 1\.000e-03, max_grad_norm 2\.0\. .*optimiser step \d.*on_nonfinite: skip")


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_skip_leaves_the_update_out_and_says_so(gradient, accumulation, capsys, monkeypatch):
    updates = []
    real = optim.Adam.update
    monkeypatch.setattr(optim.Adam, "update", lambda *args: (updates.append(1), real(*args)))
    model, events = run(
        Poisoned([3], gradient), Nothing(), on_nonfinite="skip", batch_size=5, gradient_accumulation_steps=accumulation
    )  # two batches an epoch, one of them poisoned
    assert len(updates) == (3 if accumulation == 1 else 0)
    assert all(np.isfinite(value).all() for value in lora_b(model))
    assert all(np.isfinite(list(info.values())).all() for kind, _, info in events_of(events, "report"))
    out = capsys.readouterr().out
    assert "is not finite on rows [" in out and "this update is left out (3 so far)" in out


def test_skipping_ends_where_it_is_of_no_use():
    with pytest.raises(UserError, match=r"not finite at iteration 11 \(after leaving out 10 updates in a row\)"):
        run(Poisoned(list(range(10))), Nothing(), on_nonfinite="skip", iters=30)


def test_out_of_memory_names_what_would_lower_it(monkeypatch):
    def full(*_):
        raise RuntimeError("[malloc_or_wait] Unable to allocate 4294967296 bytes.")

    monkeypatch.setattr(GradientStep, "__call__", full)
    with pytest.raises(UserError, match="Out of memory on 4 examples .* requested 4.3 GB more.*batch_size 4 → 2"):
        run(batch_size=4)

    def broken(*_):
        raise RuntimeError("[matmul] shapes")

    monkeypatch.setattr(GradientStep, "__call__", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run()


@dataclass(frozen=True)
class Mean:
    """A running mean of the log-probs is the state; the loss is measured against it."""

    decay: float = 0.9


class Running(ChosenOnly):
    options = Mean

    def initial_state(self, options):
        return {"mean": mx.array(0.0)}

    def loss(self, policy, batch, options, state):
        logps = policy(batch).logps
        mean = options.decay * state["mean"] + (1 - options.decay) * mx.stop_gradient(logps.mean())
        sums = {"examples": -mx.tanh(0.1 * (logps - mean)).sum()}
        return LossOutput(sums, {"examples": {"mean": mean * batch.ids.shape[0]}}, {"mean": mean})


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("trainer", [CPO, Running()], ids=["cpo", "running"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_from_any_saved_state_on_the_run_is_the_same(trainer, at, accumulation, compiled, tmp_path):
    """In the middle of an optimiser step and of an epoch too; dropout on; half of the layers trained."""
    settings = {"iters": 7, "gradient_accumulation_steps": accumulation, "save_every": 1, "steps_per_report": 3}
    settings["compiled"] = compiled
    whole, events = run(
        trainer, model=dropping(), states=StateFiles(tmp_path, 20), metrics=MetricsFile(tmp_path), **settings
    )
    lines = (tmp_path / "metrics.jsonl").read_text()
    mx.random.seed(99)
    np.random.seed(99)
    state = read_state(tmp_path / f"state-{at:07d}.safetensors")
    rest, later = run(
        trainer,
        model=dropping(),
        states=StateFiles(tmp_path / "rest", 1),
        resumed=state,
        metrics=MetricsFile(tmp_path),
        **settings,
    )
    assert last_values(tmp_path / "rest") == last_values(tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(lora_b(whole), lora_b(rest), strict=True))
    assert without_timing(later) == without_timing(events)[-len(later) :]
    assert len(later) < len(events)
    again = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    timing = ("iterations_per_second", "tokens_per_second", "peak_memory", "seconds")
    for one, two in zip(map(json.loads, lines.splitlines()), again, strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in two.items() if k not in timing}


def last_values(folder):
    """What the newest state holds beside arrays and timing."""
    values = newest_state(folder)[0].values
    for reports in values["history"].values():
        for report in reports:
            for key in ("iterations_per_second", "tokens_per_second", "peak_memory", "seconds"):
                report.pop(key, None)
    del values["step_times"], values["progress"]["peak_memory"]
    return values


def dropping():
    model = tiny_llama()
    model.freeze()
    linear_to_lora_layers(model, 1, {"rank": 4, "dropout": 0.3, "scale": 10.0})
    return model


def test_weights_that_are_not_finite_take_no_place(tmp_path):
    model = with_lora(tiny_llama())
    model.layers[0].self_attn.q_proj.lora_b = mx.full((32, 4), float("inf"))
    quiet = ChosenOnly()
    quiet.loss = lambda policy, batch, options, state: LossOutput({"examples": mx.array(0.0)}, {})
    with pytest.raises(UserError, match="The weights are not finite at iteration 1"):
        run(quiet, Nothing(), model=model, save_every=1, states=StateFiles(tmp_path, 2), steps_per_eval=100)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("during", ["gradient", "evaluation"])
def test_a_signal_ends_the_run_with_its_state(number, during, tmp_path, monkeypatch, capsys):
    settings = {"iters": 7, "gradient_accumulation_steps": 2, "steps_per_eval": 4}
    whole, all_events = run(**settings)
    real, calls = GradientStep.__call__, []
    done = 3 if during == "gradient" else 4

    def step(self, *args):
        calls.append(1)
        if during == "gradient" and len(calls) == 3:
            os.kill(os.getpid(), number)
        return real(self, *args)

    monkeypatch.setattr(GradientStep, "__call__", step)
    real_loss = type(CPO).loss

    def loss(self, policy, *args, **kwargs):
        if during == "evaluation" and len(calls) == 4 and not policy.model.training:
            os.kill(os.getpid(), number)
            calls.append(1)
        return real_loss(self, policy, *args, **kwargs)

    monkeypatch.setattr(type(CPO), "loss", loss)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
        run(states=StateFiles(tmp_path, 2), **settings)
    assert signal.getsignal(signal.SIGTERM) is handler
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    assert f"Stopped by {signal.Signals(number).name} after iteration {done} of 7" in capsys.readouterr().out
    state, _ = newest_state(tmp_path)
    assert state.iteration == done
    rest, events = run(resumed=state, **settings)
    assert all(np.array_equal(a, b) for a, b in zip(lora_b(whole), lora_b(rest), strict=True))
    assert events[0][:2] == ("validate", 4)  # that of iteration 4 is done again, and its report and save follow it
    assert without_timing(events) == without_timing(all_events[-len(events) :])
