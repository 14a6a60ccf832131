"""Loggers by name: what each receives, read back from the files that its own library wrote."""

import json
from types import SimpleNamespace

import mlx_lm_lora.train as host
import pytest

from mlx_lm_lora_prefplus.engine.log.health import HEALTH_CHECKS
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.callbacks import loggers
from mlx_lm_lora_prefplus.host.seam.install import activate
from tests.conftest import write_pairs

TRAIN = {"loss": 0.5, "rewards/chosen": 0.2, "grad_norm": 3.0, "learning_rate": 1e-5, "skipped_updates": 0}
VALID = {"loss": 0.6, "rewards/chosen": 0.1, "entropy": 2.0, "rows": 40}
TEST = {"loss": 0.7, "rewards/chosen": 0.1}
SAMPLES = [{"iteration": 10, "prompt": "a|b\nc", "policy": "new", "reference": "old"}]


def settings(tmp_path, *names, wandb=None):
    return SimpleNamespace(report_to=list(names), wandb=wandb, project_name="mine", adapter_path=str(tmp_path / "run"))


def report(tmp_path, name):
    """A short run of everything that a logger may be given."""
    (tmp_path / "run").mkdir(exist_ok=True)
    with loggers.open_loggers(settings(tmp_path, name), {"beta": 0.1}) as (logger,):
        logger.metrics("valid", 1, {**VALID, "loss": 0.69})
        logger.metrics("train", 10, TRAIN)
        logger.warning(10, "kl_growing", "far away")
        logger.metrics("valid", 10, VALID)
        logger.samples(SAMPLES)
        logger.metrics("test", 10, TEST)


def test_without_loggers_nothing_is_started(tmp_path):
    loggers.check_loggers(settings(tmp_path))
    with loggers.open_loggers(settings(tmp_path), {}) as started:
        assert started == []


def test_of_several_processes_the_first_reports(tmp_path):
    with loggers.open_loggers(settings(tmp_path, "tensorboard"), {}, first=False) as started:
        assert started == []


def test_the_hosts_key_names_the_project_and_wandb_is_started_once(tmp_path, monkeypatch):
    asked, closed = [], []

    class Library:
        def __init__(self, wanted):
            asked.append(wanted)

        def close(self):
            closed.append(self)

    monkeypatch.setitem(loggers.LOGGERS, "wandb", Library)
    with pytest.raises(KeyError), loggers.open_loggers(settings(tmp_path, "wandb", wandb="theirs"), {"beta": 1}):
        raise KeyError
    assert [(one.project, one.config) for one in asked] == [("theirs", {"beta": 1})]
    assert len(closed) == 1, "also where the run fails"


def test_packages_that_are_missing_are_all_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"report_to, wandb: .*tensorboard, wandb.*pip install tensorboard wandb"):
        loggers.check_loggers(settings(tmp_path, "tensorboard", wandb="theirs"))


def test_every_logger_is_named_after_its_package():
    assert set(loggers.LOGGERS) == {"wandb", "swanlab", "tensorboard"}


def test_tensorboard(tmp_path):
    """One chart for each metric: the splits are TensorBoard's runs."""
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    report(tmp_path, "tensorboard")
    assert tensorboard_scalars(tmp_path / "run") == {
        "train": {name: [(10, pytest.approx(value))] for name, value in TRAIN.items()},
        "eval": {
            name: [(1, pytest.approx(0.69 if name == "loss" else value)), (10, pytest.approx(value))]
            for name, value in VALID.items()
        },
        "test": {name: [(10, pytest.approx(value))] for name, value in TEST.items()},
    }
    texts = tensorboard_texts(tmp_path / "run")
    assert texts["warnings/kl_growing"] == [(10, "far away")]
    ((step, table),) = texts["samples"]
    assert step == 10 and "| 10 | a\\|b<br>c | new | old |" in table


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {tag: found.Tensors(tag) for tag in found.Tags()["tensors"]}


def tensorboard_scalars(run):
    return {
        split: {
            tag: [(one.step, float(one.tensor_proto.float_val[0])) for one in those]
            for tag, those in events(run / "tensorboard" / split).items()
        }
        for split in ("train", "eval", "test")
    }


def tensorboard_texts(run):
    return {
        tag: [(one.step, one.tensor_proto.string_val[0].decode()) for one in those]
        for tag, those in events(run / "tensorboard" / "text").items()
    }


def test_wandb(tmp_path, monkeypatch):
    """Its offline file holds every figure under TRL's names, once."""
    pytest.importorskip("wandb", reason="W&B is 60 MB, too large for the extra dev")
    monkeypatch.setenv("WANDB_MODE", "offline")
    report(tmp_path, "wandb")
    steps = wandb_history(tmp_path / "run")
    assert steps[1] == {f"eval/{name}": 0.69 if name == "loss" else value for name, value in VALID.items()}
    assert steps[10] == {
        **{f"train/{name}": value for name, value in TRAIN.items()},
        **{f"eval/{name}": value for name, value in VALID.items()},
        **{f"test/{name}": value for name, value in TEST.items()},
        "samples": [list(SAMPLES[0].values())],
        "warnings": [[10, "kl_growing", "far away"]],
    }


def wandb_history(run):
    """Step → what was logged at it, tables as their rows."""
    from wandb.proto import wandb_internal_pb2

    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        tables = [key.removesuffix("/_type") for key, value in items.items() if value == "table-file"]
        step = found.setdefault(items.get("_step"), {})
        for key, value in items.items():
            if not (key.startswith("_") or key.split("/")[0] in tables):
                assert key not in step, "logged twice"
                step[key] = value
        for name in tables:
            step[name] = json.loads((file.parent / "files" / items[f"{name}/path"]).read_text())["data"]
    return found


def leveldb_records(content, block=32768, header=7):
    """The records of a LevelDB log, which an offline file of W&B is after seven bytes of its own."""
    place, parts = header, b""
    while place + header <= len(content):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_swanlab(tmp_path, monkeypatch):
    """What SwanLab itself is handed, and that it takes it: its file is private to it."""
    swanlab = pytest.importorskip("swanlab", reason="SwanLab is optional")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    logged = []
    log = swanlab.log
    monkeypatch.setattr(swanlab, "log", lambda values, step: (logged.append((step, values)), log(values, step=step)))
    report(tmp_path, "swanlab")
    assert logged[1] == (10, {f"train/{name}": value for name, value in TRAIN.items()})
    assert [sorted(values) for _, values in logged[2:5:2]] == [["warnings/kl_growing"], ["samples"]]
    assert list((tmp_path / "run" / "swanlog").rglob("*")), "its own file"


def test_a_run_sends_everything_that_metrics_jsonl_has(tmp_path, model_folder, monkeypatch):
    """The real run, read back by TensorBoard's own library."""
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    write_pairs(tmp_path / "data", train=10, valid=3, test=3)
    activate(host)
    monkeypatch.setitem(HEALTH_CHECKS, "kl_growing", lambda history, run: "far away")
    rows = {"model": str(model_folder), "data": str(tmp_path / "data"), "adapter_path": str(tmp_path / "run")}
    run = {"train": True, "test": True, "train_mode": "dpo", "iters": 4, "batch_size": 4, "fuse": False}
    often = {"steps_per_report": 2, "steps_per_eval": 2, "sample_prompts": 1, "sample_tokens": 4}
    host.main({**rows, **run, **often, "report_to": "tensorboard"})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    wanted, names = {}, {"train": "train", "valid": "eval", "test": "test"}
    for line in lines:
        for name, value in line.items():
            if "split" in line and name not in ("iteration", "split"):
                charts = wanted.setdefault(names[line["split"]], {})
                charts.setdefault(name, []).append((line["iteration"], pytest.approx(value, rel=1e-6)))
    assert set(wanted) == {"train", "eval", "test"}
    assert {"grad_norm", "entropy", "nll_loss", "logps/chosen", "skipped_updates"} <= set(wanted["train"])
    assert tensorboard_scalars(tmp_path / "run") == wanted
    texts = tensorboard_texts(tmp_path / "run")
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [step for step, _ in texts.pop("samples")] == [one["iteration"] for one in samples]
    warned = [line for line in lines if "warning" in line]
    assert warned and texts == {f"warnings/{line['warning']}": [(line["iteration"], line["text"])] for line in warned}
