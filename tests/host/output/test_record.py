"""What a run leaves for those who look at it: run.json, samples.jsonl, and a report made of them."""

import json
from pathlib import Path

import mlx_lm_lora.train as host
import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.seam.install import activate
from mlx_lm_lora_prefplus.report.page import page
from mlx_lm_lora_prefplus.report.results.runs import read_runs
from tests.conftest import write_pairs

activate(host)


@pytest.fixture
def go(model_folder, tmp_path, monkeypatch):
    """Run the host's `main` on a small config; returns the adapter folder."""
    write_pairs(tmp_path / "data", train=10, valid=3)
    monkeypatch.chdir(tmp_path)

    def run(**changes) -> Path:
        config = {
            **{"model": str(model_folder), "data": "data", "train": True, "train_mode": "dpo", "iters": 4},
            **{"batch_size": 4, "learning_rate": 1e-2, "steps_per_report": 2, "steps_per_eval": 2, "fuse": False},
        }
        host.main(config | changes)
        return Path("adapters")

    return run


def test_a_run_says_what_it_was_started_with(go):
    record = json.loads((go(beta=0.3) / "run.json").read_text())
    settings = record["settings"]
    assert settings["beta"] == {"value": 0.3, "source": "command line", "default": 0.1}
    assert settings["optimizer"] == {"value": "adam", "source": "host default"}
    assert settings["max_grad_norm"] == {"value": None, "source": "trainer default"}
    assert "grpo_loss_type" not in settings  # a key of the host that is none of this mode
    assert record["data"]["train"]["used"] == 10 and record["data"]["valid"]["used"] == 3
    assert record["iters"] == 4
    assert any(line.startswith("Objective: sigmoid") for line in record["summary"])
    assert any(line.startswith("Engine: ") for line in record["summary"])
    assert set(record["versions"]) == {"mlx-lm-lora-prefplus", "mlx-lm-lora", "mlx-lm", "mlx", "python"}


def test_nothing_is_recorded_where_the_run_cannot_start(go):
    with pytest.raises(UserError):
        go(beta=-1)
    with pytest.raises(UserError, match="sample_prompts: there are no validations"):
        go(sample_prompts=2, val_batches=0)
    assert not Path("adapters/run.json").exists()


def test_samples_of_a_run_stand_in_its_report(go):
    folder = go(sample_prompts=2, sample_tokens=5, iters=6)
    (run,) = read_runs([folder])
    assert [sample.iteration for sample in run.samples] == [1, 1, 2, 2, 4, 4, 6, 6]
    first, last = run.samples[0], run.samples[-2]
    assert first.policy == first.reference == last.reference  # before the first step
    assert first.prompt == last.prompt and first.prompt.split()[0] == "<s>"
    text = page([run])
    assert "Before training (reference)" in text and "After training: iteration 6" in text
    assert run.notes == [] and "Objective" in text


@pytest.mark.slow
def test_samples_change_nothing_in_a_run(go):
    without = (go() / "adapters.safetensors").read_bytes()
    assert (go(sample_prompts=3, sample_tokens=4) / "adapters.safetensors").read_bytes() == without


@pytest.mark.slow
def test_a_run_that_goes_on_has_each_sample_once(go):
    whole = go(sample_prompts=1, sample_tokens=4, iters=6, save_every=2)
    expected = (whole / "samples.jsonl").read_text()
    (whole / "state-0000006.safetensors").unlink()
    again = go(sample_prompts=1, sample_tokens=4, iters=6, save_every=2, resume=True)
    assert (again / "samples.jsonl").read_text() == expected


def test_loggers_are_told_of_a_run(go, monkeypatch):
    from mlx_lm_lora_prefplus.host.callbacks import loggers

    started, told = [], []

    class Logger:
        def __init__(self, asked):
            started.append((asked.project, str(asked.folder), asked.config["beta"]))

        def metrics(self, split, iteration, values):
            told.append({"iteration": iteration, "split": split, **values})

        def warning(self, iteration, name, text):
            told.append({"iteration": iteration, "warning": name, "text": text})

        def close(self):
            started.append("closed")

    monkeypatch.setattr(loggers, "find_spec", lambda name: True)
    monkeypatch.setitem(loggers.LOGGERS, "tensorboard", Logger)
    folder = go(report_to="tensorboard", project_name="mine")
    assert started == [("mine", "adapters", 0.1), "closed"]
    assert told == [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_logger_that_is_missing_is_told_before_anything_is_loaded(go, monkeypatch):
    from mlx_lm_lora_prefplus.host.callbacks import loggers

    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"report_to: the package is not installed here: swanlab, tensorboard"):
        go(report_to=["swanlab", "tensorboard"], model="no/such/model/anywhere")
    with pytest.raises(UserError, match="report_to.*wandb"):
        go(report_to="wandboard")
