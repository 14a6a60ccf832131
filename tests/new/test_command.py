"""`mlx_lm_lora.prefplus new`: by flags and by answers, to a config that `check` passes and that trains."""

import json
from pathlib import Path

import mlx_lm_lora.train as host
import pytest
import yaml
from typer.testing import CliRunner

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.seam.install import activate
from mlx_lm_lora_prefplus.new import main
from mlx_lm_lora_prefplus.preview.report import build_report
from tests.conftest import write_pairs

activate(host)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_pairs(tmp_path / "pairs", train=10, valid=3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(folder, model_folder):
    """Call the command on the tiny model and its pairs."""

    def run(*words: str, replies: str = "", data: str = "pairs"):
        return CliRunner().invoke(cli.app, ["new", "--model", str(model_folder), "--data", data, *words], input=replies)

    return run


@pytest.fixture
def unmeasured(monkeypatch):
    """Skip the steps that measure: every run fits. Their own tests measure."""
    fits = {"fits": True, "proposal": None, "peak": 1, "usable": 2}
    monkeypatch.setattr(
        main,
        "build_report",
        lambda words, measured, fitted: {**build_report(words, measured=False), **({"fit": fits} if fitted else {})},
    )


def config(name: str = "run.yaml") -> dict:
    return yaml.load(Path(name).read_text("utf-8"), host.yaml_loader)


def unpaired(folder) -> None:
    rows = [{"prompt": f"w{i}", "completion": f"w{i + 1} w2", "label": i % 2 == 0} for i in range(8)]
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_flags_alone_give_a_config_that_is_checked_and_trains(call, folder, model_folder):
    done = call("--mode", "dpo", "--preset", "dpo-zephyr", "--machine", "this", "--output", "mine.yaml")
    assert done.exit_code == 0, done.exception
    assert done.stdout.endswith("    mlx_lm_lora.prefplus check mine.yaml\n    mlx_lm_lora.train --config mine.yaml\n")
    written = config("mine.yaml")
    assert (written["model"], written["preset"], written["adapter_path"]) == (
        str(model_folder),
        "dpo-zephyr",
        "runs/mine",
    )
    assert written["learning_rate"] == pytest.approx(5e-6)  # ten times the preset's, which is for all weights
    report = build_report(["mine.yaml"], measured=False)
    assert report["can_start"] and not report["problems"]
    host.main({**written, "iters": 2, "epochs": None, "steps_per_report": 1})
    lines = [json.loads(line) for line in (folder / "runs/mine/metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line.get("split") == "train"] == [1, 2]


def test_every_line_says_what_it_is_for(call, unmeasured):
    assert call("--yes").exit_code == 0
    text = Path("run.yaml").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 15
    assert [line for line in lines if not line.partition(" # ")[2]] == []


def test_a_session_asks_again_and_offers_what_reads_the_rows(call, folder, unmeasured):
    unpaired(folder / "thumbs")
    done = call(replies="dpo\nbco\n\n16 apples\n16GB\npairs\nbco.yaml\n", data="thumbs")
    assert done.exit_code == 0, done.exception
    assert "dpo does not work with unpaired rows" in done.stdout and "Mode [kto]: " in done.stdout
    assert "Preset [bco]: " in done.stdout and "Modes for these rows:\n  bco" in done.stdout
    assert "'16 apples' is not a size" in done.stdout and "pairs already exists" in done.stdout
    assert (config("bco.yaml")["train_mode"], config("bco.yaml")["preset"]) == ("bco", "bco")


def test_model_and_data_are_asked_for(folder, model_folder, unmeasured):
    done = CliRunner().invoke(cli.app, ["new"], input=f"nothing/at/all\n{model_folder}\nnowhere.jsonl\npairs\n")
    assert done.exit_code == 0, done.exception
    assert "there is no folder nothing/at/all" in done.stdout and "no file or folder 'nowhere.jsonl'" in done.stdout
    assert (config()["data"], config()["train_mode"]) == ("pairs", "dpo")


def test_without_a_terminal_the_missing_flags_are_named(folder, model_folder):
    done = CliRunner().invoke(cli.app, ["new"], input="")
    assert str(done.exception).endswith("Give --model MODEL and --data DATA.")
    done = CliRunner().invoke(cli.app, ["new", "--model", str(model_folder), "-y"])
    assert isinstance(done.exception, UserError) and str(done.exception).endswith("Give --data DATA.")


def test_no_file_is_overwritten(call, folder):
    (folder / "run.yaml").write_text("mine")
    done = call("--output", "run.yaml")
    assert str(done.exception) == "output: run.yaml already exists and is not overwritten. Give another name."
    assert (folder / "run.yaml").read_text() == "mine"


def test_a_free_name_is_the_default(call, folder, unmeasured):
    (folder / "run.yaml").write_text("mine")
    (folder / "runs/run-2").mkdir(parents=True)
    assert call("-y").exit_code == 0
    assert config("run-2.yaml")["adapter_path"] == "runs/run-2-2"


def test_flags_of_training_go_into_the_file(call, unmeasured):
    done = call("-y", "--mode", "cpo", "--batch-size", "2", "--iters", "7", "--cpo-alpha", "0.5", "--preset", "none")
    assert done.exit_code == 0, done.exception
    written = config()
    assert (written["batch_size"], written["iters"], written["cpo_alpha"]) == (2, 7, 0.5)
    assert "epochs" not in written and "preset" not in written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mode", "kot"), "train_mode: 'kot' is not a mode of"),
        (("--preset", "kto", "--mode", "dpo"), "preset, for mode dpo, 'kto' does not exist. Choose one of dpo, "),
        (("--machine", "large"), "'large' is not a size"),
        (("--output", "run.txt"), "must end in .yaml"),
        (("mine.yaml",), "'mine.yaml' is not a flag"),
    ],
)
def test_wrong_flags(call, words, said):
    done = call("-y", *words)
    assert isinstance(done.exception, UserError) and said in str(done.exception)


def test_a_base_model(call, folder, tmp_path, model_folder, unmeasured):
    """Its tokenizer has no chat template: ORPO, and text as it is."""
    base = tmp_path / "base"
    base.mkdir()
    for file in model_folder.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        if (base / file).is_file():
            content = (base / file).read_text()
            (base / file).unlink()
            if file.endswith(".json"):
                (base / file).write_text(
                    json.dumps({k: v for k, v in json.loads(content).items() if k != "chat_template"})
                )
    done = call("--model", str(base), "-y")
    assert done.exit_code == 0, done.exception
    assert "a base model (it has no chat template)" in done.stdout
    assert (config()["train_mode"], config()["prompt_format"]) == ("orpo", "raw")


PROPOSAL = {"changes": {"batch_size": 1, "gradient_accumulation_steps": 4, "memory": "low"}}


@pytest.mark.parametrize("proposal", [PROPOSAL, None])
def test_what_does_not_fit_gets_the_changes_that_do(call, folder, monkeypatch, proposal):
    """With the changes of check --fit the steps are counted anew; where there are none nothing is written."""
    too_large = {"fits": False, "proposal": proposal, "peak": 2 * 10**9, "usable": 10**9}
    real = build_report
    monkeypatch.setattr(
        main,
        "build_report",
        lambda words, measured, fitted: {**real(words, measured=False), **({"fit": too_large} if fitted else {})},
    )
    done = call("-y", "--machine", "1.5GB")
    if proposal is None:
        assert "the run needs 2.00 GB, but only 1.00 GB of a Mac with 1.5GB can be used" in str(done.exception)
        assert not list(folder.glob("*.yaml"))
        return
    assert done.exit_code == 0, done.exception
    written = config()
    assert {key: written[key] for key in PROPOSAL["changes"]} == PROPOSAL["changes"]
    assert written["lr_schedule"]["arguments"][1] + written["lr_schedule"]["warmup"] == 8  # 3 epochs · 10 rows / 4
    assert "memory: low # needed to fit into a Mac with 1.5GB" in (folder / "run.yaml").read_text()


def test_nothing_is_written_where_check_finds_a_problem(call, folder):
    (folder / "pairs/train.jsonl").write_text('{"prompt": "w1", "chosen": "w2", "rejected": "w2"}\n')
    done = call("-y")
    assert isinstance(done.exception, UserError) and "No config was written." in str(done.exception)
    assert not list(folder.glob("*.yaml"))
