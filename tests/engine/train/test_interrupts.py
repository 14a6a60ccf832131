"""What signals do while training and elsewhere, and that the handlers of before come back."""

import os
import signal
import threading

import pytest

from mlx_lm_lora_prefplus.engine.train.interrupts import StepTimer, StopRequest, stop_after_step, stop_at_once

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCONT)


@pytest.fixture(autouse=True)
def _handlers():
    """Python's own, whatever the program that runs the tests has set."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers():
    return [signal.getsignal(number) for number in NUMBERS]


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_the_first_is_noted_and_the_second_ends(number, error, capfd):
    before = handlers()
    with pytest.raises(error) as caught, stop_after_step() as stop:
        assert stop.signal is None
        send(number)
        assert stop.signal == number
        assert "A second signal stops at once" in capfd.readouterr().err
        send(number)
    assert handlers() == before
    if error is SystemExit:
        assert caught.value.code == 143


def test_at_once():
    before = handlers()
    with pytest.raises(SystemExit) as caught, stop_at_once():
        send(signal.SIGTERM)
    assert caught.value.code == 143 and handlers() == before


def test_one_inside_the_other():
    with pytest.raises(SystemExit), stop_at_once():
        with stop_after_step() as stop:
            send(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
        send(signal.SIGTERM)


def test_going_on_is_counted():
    with stop_after_step() as stop:
        send(signal.SIGCONT)
        send(signal.SIGCONT)
        assert stop.pauses == 2


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_after_step() as stop:
        send(signal.SIGINT)
        assert stop.signal is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_sets_no_handler():
    before, seen = handlers(), []

    def work():
        with stop_after_step(), stop_at_once():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_lap_in_which_the_process_was_stopped_counts_as_the_others(monkeypatch):
    clock = iter([0, 1, 1, 3, 3, 1003, 1003, 1006])
    monkeypatch.setattr("mlx_lm_lora_prefplus.engine.train.interrupts.time.perf_counter", lambda: next(clock))
    stop = StopRequest()
    laps = StepTimer(stop)
    for pauses in (0, 0, 1, 0):
        with laps.lap():
            stop.pauses += pauses
    assert laps.count == 4 and laps.seconds == (1 + 2 + 3) / 3 * 4
    again = StepTimer(stop)
    again.load(laps.dump())
    assert again.seconds == laps.seconds
    assert StepTimer(stop).seconds == 0


def test_laps_that_were_all_stopped_are_as_measured(monkeypatch):
    clock = iter([0, 7])
    monkeypatch.setattr("mlx_lm_lora_prefplus.engine.train.interrupts.time.perf_counter", lambda: next(clock))
    stop = StopRequest()
    laps = StepTimer(stop)
    with laps.lap():
        stop.pauses += 1
    assert (laps.count, laps.seconds) == (1, 7)


def test_a_closed_terminal_asks_for_the_end_and_never_ends_at_once():
    """Shells send SIGHUP as well as the kernel, and systemd sends it after SIGTERM."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with stop_after_step() as stop:
        send(signal.SIGHUP)
        send(signal.SIGHUP)
        assert stop.signal == signal.SIGHUP
    with stop_after_step() as stop:
        send(signal.SIGTERM)
        send(signal.SIGHUP)
        assert stop.signal == signal.SIGTERM
    with pytest.raises(SystemExit) as caught, stop_at_once():
        send(signal.SIGHUP)
    assert caught.value.code == 129


def test_under_nohup_it_is_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_at_once(), stop_after_step() as stop:
        send(signal.SIGHUP)
        assert stop.signal is None
