"""The guard speaks before the memory of a GPU is full, once, and on a CPU never. The limit of the device is made up."""

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.engine.log.history import History
from mlx_lm_lora_prefplus.engine.log.journal import Journal
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory import advice as memory
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.train.memory_guard import MemoryGuard
from mlx_lm_lora_prefplus.settings import RunSettings
from mlx_lm_lora_prefplus.trainers import CPO
from tests.conftest import iterate_batches, tiny_llama
from tests.engine.train.small_run import run

LIMIT = 10_000_000_000


@pytest.fixture
def guarded(monkeypatch):
    """A guard of a device whose memory is what the test says; returns it with `said` and `memory`."""
    monkeypatch.setattr(memory, "device_limit", lambda: LIMIT)
    now = {"active": 2e9, "peak": 8e9}
    monkeypatch.setattr(mx, "get_active_memory", lambda: int(now["active"]))
    monkeypatch.setattr(mx, "get_peak_memory", lambda: int(now["peak"]))
    monkeypatch.setattr(mx, "reset_peak_memory", lambda: now.update(peak=now["active"]))

    class State:
        class counters:
            peak_memory, iteration = 0, 7

    said: list[str] = []
    settings = RunSettings(batch_size=4)
    journal = Journal(History([], []), [], CPO, CPO.options(), settings)
    journal.warn = lambda name, text, iteration: said.append(text)
    guard = MemoryGuard(settings, State, journal, SharedPrefixPolicy(split_model(tiny_llama())))
    return guard, now, said


def test_the_tokens_of_packed_rows_count(guarded):
    """Completions of different lengths take as much in one row as equal ones, and would take more if padded."""
    guard, now, said = guarded
    guard.policy = PackedPolicy(split_model(tiny_llama()), always=True)
    now["peak"] = 8.9e9
    for chosen, rejected in ((50, 50), (95, 5)):
        row = {"prompt": [1] * 20, "chosen": [2] * chosen, "rejected": [3] * rejected}
        guard.check(next(iterate_batches([row] * 4, batch_size=4, shuffle=False)))
        now["peak"] = 8.9e9
    assert not said


def batch_of(tokens: int):
    row = {"prompt": [1] * (tokens // 2), "chosen": [2] * (tokens // 4), "rejected": [3] * (tokens // 4)}
    return next(iterate_batches([row] * 4, batch_size=4, shuffle=False))


def test_a_step_near_the_limit_is_told_once_with_the_keys_to_change(guarded):
    guard, now, said = guarded
    guard.check(batch_of(40))
    assert guard.state.counters.peak_memory == 8e9 and now["peak"] == 2e9, "loading is not a step, and not forgotten"
    now["peak"] = 8.9e9
    guard.check(batch_of(40))
    assert not said
    now["peak"] = 9.1e9
    guard.check(batch_of(40))
    guard.check(batch_of(40))
    (text,) = said
    assert "a step takes 9.1 GB" in text and "more than 10.0 GB" in text
    assert "batch_size 4 → 2" in text and "check CONFIG --fit" in text
    assert "loss" not in text, "programs read lines with this word as reports"


def test_a_longer_batch_is_told_before_it_is_computed(guarded):
    guard, now, said = guarded
    guard.check(batch_of(40))
    now["peak"] = 5e9  # 3 GB above what is resident
    guard.check(batch_of(80))  # 2 + 2 · 3 GB
    assert not said
    now["peak"] = 8e9
    guard.check(batch_of(120))
    (text,) = said
    assert "the next batch has more tokens than any before it and may need 11.0 GB" in text


def test_a_shorter_batch_is_no_reason(guarded):
    guard, now, said = guarded
    for tokens, peak in ((120, 2e9), (40, 8e9), (120, 8e9)):
        now["peak"] = peak
        guard.check(batch_of(tokens))
    assert not said


def test_a_run_warns_and_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(memory, "device_limit", lambda: 1000)
    _, events = run(iters=6)
    assert capsys.readouterr().out.count("[WARNING] Iteration 2: a step takes") == 1
    assert [event for event in events if event[0] == "report"][-1][1] == 6


def test_a_cpu_has_no_limit(capsys):
    assert memory.device_limit() is None or mx.default_device().type == mx.gpu
    run(iters=6)
    assert "a step takes" not in capsys.readouterr().out
