"""Loggers by name: what each is told, and what is said where its package is not there."""

import sys
from types import SimpleNamespace

import pytest
from mlx_lm.tuner import callbacks as mlx_lm_callbacks

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import loggers

TRAIN = {"iteration": 10, "train_loss": 0.5, "learning_rate": 1e-5}
VALID = {"iteration": 10, "val_loss": 0.6, "val_time": 1.5}


def settings(tmp_path, *names, wandb=None):
    return SimpleNamespace(report_to=list(names), wandb=wandb, project_name="mine", adapter_path=str(tmp_path / "run"))


class Recorder:
    def __init__(self):
        self.seen = []

    def on_train_loss_report(self, info):
        self.seen.append(info)

    on_val_loss_report = on_train_loss_report


class Library:
    """Stands in for wandb and swanlab, which have these two functions in common."""

    def __init__(self):
        self.started, self.logged = [], []

    def init(self, **how):
        self.started.append(how)

    def log(self, values, step):
        self.logged.append((step, values))


@pytest.fixture
def library(monkeypatch):
    library = Library()
    for name in ("wandb", "swanlab"):
        monkeypatch.setattr(mlx_lm_callbacks, name, library)
    return library


def test_without_loggers_the_callback_stays_as_it_is(tmp_path):
    callback = Recorder()
    loggers.check_loggers(settings(tmp_path))
    assert loggers.with_loggers(settings(tmp_path), {}, callback) is callback


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_logger_of_mlx_lm_and_the_callback_are_both_told(tmp_path, library, name):
    inner = Recorder()
    callback = loggers.with_loggers(settings(tmp_path, name), {"beta": 0.1}, inner)
    callback.on_train_loss_report(TRAIN)
    callback.on_val_loss_report(VALID)
    assert library.logged == [(10, TRAIN), (10, VALID)]
    assert inner.seen == [TRAIN, VALID]
    (how,) = library.started
    assert (how["project"], how["config"], how.get("name", how.get("experiment_name"))) == (
        "mine",
        {"beta": 0.1},
        "run",
    )


def test_several_loggers_are_all_told(tmp_path, library):
    loggers.with_loggers(settings(tmp_path, "wandb", "swanlab"), {}).on_train_loss_report(TRAIN)
    assert library.logged == [(10, TRAIN)] * 2


def test_the_hosts_key_names_the_project(tmp_path, library):
    loggers.with_loggers(settings(tmp_path, wandb="theirs"), {})
    assert library.started[0]["project"] == "theirs"


def test_wandb_that_is_asked_for_twice_is_started_once(tmp_path, library):
    loggers.with_loggers(settings(tmp_path, "wandb", wandb="theirs"), {})
    assert [how["project"] for how in library.started] == ["theirs"]


def test_packages_that_are_missing_are_all_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"report_to, wandb: .*tensorboard, wandb.*pip install tensorboard wandb"):
        loggers.check_loggers(settings(tmp_path, "tensorboard", wandb="theirs"))


def test_every_logger_is_named_after_its_package():
    assert set(loggers.LOGGERS) == {"wandb", "swanlab", "tensorboard"}


def test_tensorboard_gets_training_and_validation_in_one_chart(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            self.split = folder.rsplit("/")[-1]

        def add_scalar(self, tag, value, step):
            written.append((self.split, tag, value, step))

        def flush(self):
            written.append(self.split)

    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorboard.summary", SimpleNamespace(Writer=Writer))
    inner = Recorder()
    callback = loggers.with_loggers(settings(tmp_path, "tensorboard"), {}, inner)
    callback.on_train_loss_report(TRAIN)
    callback.on_val_loss_report(VALID)
    assert written == [
        *(("train", "loss", 0.5, 10), ("train", "learning_rate", 1e-5, 10), "train"),
        *(("val", "loss", 0.6, 10), ("val", "time", 1.5, 10), "val"),
    ]
    assert inner.seen == [TRAIN, VALID]


def test_tensorboards_own_library_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = loggers.with_loggers(settings(tmp_path, "tensorboard"), {})
    callback.on_train_loss_report(TRAIN)
    callback.on_val_loss_report(VALID)
    for split, value in (("train", 0.5), ("val", 0.6)):
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / split)).Reload()
        ((step, found),) = [(event.step, float(event.tensor_proto.float_val[0])) for event in events.Tensors("loss")]
        assert (step, found) == (10, pytest.approx(value))
