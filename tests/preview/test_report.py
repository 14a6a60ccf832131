"""What `check` finds out before a run, and whether it lets it start."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.preview import forecast
from mlx_lm_lora_prefplus.preview.render import _histogram
from mlx_lm_lora_prefplus.preview.report import build_report


@pytest.fixture
def call():
    return lambda *words: CliRunner().invoke(cli.app, ["check", *words], env={"COLUMNS": "80"})


def test_a_run_that_can_start(call, config):
    done = call(config(), "--batch-size", "2")
    assert done.exit_code == 0, done.stderr
    assert "The run can start." in done.stdout
    for words in ("command line", "config run.yaml", "per micro-batch", "LoRA adapters", "the prompt once"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    assert not Path("adapters").exists()


def test_json(call, config):
    done = call(config(beta=0.5), "--json", "--no-forecast")
    report = json.loads(done.stdout)
    settings = {one["key"]: one for one in report["settings"]}
    assert report["can_start"] and "forecast" not in report
    assert (settings["beta"]["value"], settings["beta"]["source"]) == (0.5, "config run.yaml")
    assert settings["optimizer"] == {"key": "optimizer", "value": "adam", "source": "host default", "used": False}
    assert report["data"]["train"]["used"] == 10 and report["reference"].endswith("0 of 13 rows from the cache")


def test_a_bin_of_one_length_is_one_number():
    table = _histogram([{"from": 16, "to": 16, "rows": 2}, {"from": 17, "to": 18, "rows": 1}])
    assert list(table.columns[0].cells) == ["16", "17–18"]


def test_the_prompt_format_is_told(checked):
    assert checked()["prompt_format"].startswith("chat, text becomes messages")
    assert checked(prompt_format="raw")["prompt_format"].startswith("raw, text goes to the model unchanged")


def test_training_is_meant_where_nothing_says_so(checked):
    assert checked(train=None)["can_start"]


def test_all_that_is_wrong_with_the_settings_is_told(call, config):
    done = call(config(beta=-1, batch_size=0), "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 1 and not report["can_start"]
    assert "beta" in report["problems"][0] and "batch_size" in report["problems"][0]


@pytest.mark.parametrize("key", ["wand", "betta", "lora_layers"])
def test_a_misspelt_key_is_a_problem_whether_or_not_a_run_would_start(call, config, key):
    done = call(config(**{key: 3}), "--json", "--no-forecast")
    report = json.loads(done.stdout)
    assert done.exit_code == 1 and not report["can_start"]
    assert sum("did you mean" in problem and key in problem for problem in report["problems"]) == 1
    assert not any(key in warning for warning in report["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "./nowhere"}, "there is no folder ./nowhere"),
        ({"data": "nothing"}, "nothing"),
        ({"adapter_path": "run.yaml/adapters"}, "adapter_path: run.yaml/adapters cannot be written"),
        ({"train_mode": "sft"}, "sft"),
        ({"save_best": "loss", "val_batches": 0}, "there are no validations"),
    ],
)
def test_why_it_cannot_start(checked, changes, words):
    report = checked(**changes)
    assert not report["can_start"] and words in report["problems"][0]


def test_a_config_for_rounds_is_recognised(config, rows):
    name = config(rounds=2)
    for split in ("train", "valid"):
        rows(split, {"prompt": "w1"})
    first, second = build_report([name, "--seed", "2"], measured=False)["problems"]
    assert first.startswith("This is a config for rounds")
    assert first.endswith(": mlx_lm_lora.prefplus rounds run.yaml --seed 2") and "fit no format" in second


def test_a_misspelt_mode_is_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (problem,) = build_report(["--train-mode", "dopo"])["problems"]
    assert problem.startswith("train_mode: 'dopo' (command line) is not a mode; did you mean dpo?")


def test_no_such_config(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "nothing.yaml cannot be read" in build_report(["nothing.yaml"])["problems"][0]


def test_rows_are_shown_with_their_boundary(call, config, rows):
    config()
    rows("train", *({"prompt": "w1 w2", "chosen": f"w20 w{i}", "rejected": "w30"} for i in range(3, 9)))
    done = call("run.yaml", "--no-forecast")
    assert "row 1, the first (prompt 5 tokens)" in done.stdout
    assert "<s> <user> w1 w2 <assistant>" in done.stdout
    assert "chosen, 3 tokens ┃ w20 w3 </s>" in done.stdout and "rejected, 2 tokens ┃ w30 </s>" in done.stdout


def turns(*words: str) -> list[dict]:
    """An answer, a question, an answer, …"""
    return [{"role": ("assistant", "user")[i % 2], "content": word} for i, word in enumerate(words)]


def test_what_does_not_count_is_marked(call, config, rows):
    config()
    pair = {"prompt": "w1", "chosen": turns("w20 w21", "w2", "w22"), "rejected": turns("w30", "w2", "w31")}
    rows("train", *(pair | {"prompt": f"w{i}"} for i in range(6)))
    done = call("run.yaml", "--no-forecast")
    shown = " ".join(done.stdout.split())
    assert "chosen, 8 tokens, 5 of them count ┃ w20 w21 </s>⟨ <user> w2 <assistant>⟩ w22 </s>" in shown
    assert "⟨…⟩ does not count in the loss" in shown
    assert "not counted 36 of 90 tokens of the completions" in shown
    report = json.loads(call("run.yaml", "--no-forecast", "--json").stdout)
    (first, *_) = report["rows"][0]["completions"]
    assert (first["tokens"], first["counted"]) == (8, 5)
    assert [part["counts"] for part in first["parts"]] == [True, False, True]
    off = call("run.yaml", "--no-forecast", "--no-assistant-only-loss")
    assert "⟨" not in off.stdout and "of them count" not in off.stdout


def test_where_the_template_tells_nothing_it_is_said(checked, config, rows, model_folder, tmp_path):
    import shutil

    shutil.copytree(model_folder, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    settings["chat_template"] = "{% for m in messages | reverse %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    config()
    rows("train", *({"prompt": f"w{i}", "chosen": turns("w20", "w2", "w22"), "rejected": "w30"} for i in range(6)))
    told = "\n".join(checked(model="model")["warnings"])
    assert "train: in 6 of 6 rows it is unclear which tokens the assistant wrote" in told


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"train_mode": "kto"}, {"train_mode": "dpo", "loss_type": "plackett_luce"}])
def test_rows_of_other_kinds(checked, config, rows, changes):
    config()
    lists = ({"prompt": f"w{i}", "responses": ["w20 w21", "w22", "w23"], "scores": [3, 2, 1]} for i in range(8))
    unpaired = ({"prompt": f"w{i}", "completion": f"w2{i} w30", "label": i % 2 == 0} for i in range(8))
    rows("train", *(unpaired if changes["train_mode"] == "kto" else lists))
    (Path("data") / "valid.jsonl").unlink()
    report = checked(measured=True, **changes)
    assert report["can_start"], report["problems"]
    train = report["data"]["train"]
    names = [one["name"] for one in report["rows"][0]["completions"]]
    if changes["train_mode"] == "kto":
        assert train["labels"] == {"desirable": 4, "undesirable": 4} and names == ["desirable"]
    else:
        assert train["list_sizes"] == {"3": 8} and names == ["1. of 3", "2. of 3", "3. of 3"]
    assert report["forecast"]["time"]["training"] > 0


def test_oddities_of_the_data(checked, config, rows):
    config()
    pairs = [{"prompt": f"w{i}", "chosen": "w20 w21 w22 w23", "rejected": "w30"} for i in range(20)]
    again = pairs[0]
    exchanged = {"prompt": "w1", "chosen": "w30", "rejected": "w20 w21 w22 w23"}
    same = {"prompt": "w2", "chosen": "w20", "rejected": "w20"}
    rows("train", *pairs, again, exchanged, same)
    rows("valid", pairs[3], {"prompt": "w39", "chosen": "w1", "rejected": "w2"})
    report = checked()
    train = report["data"]["train"]
    assert train["dropped"] == {"chosen and rejected are the same": 1}
    assert train["repeated"] == {"rows": 1, "prompts": 2, "contradictions": 1}
    assert train["length_bias"]["chosen_longer"] == pytest.approx(21 / 22)
    assert sum(one["rows"] for one in train["histogram"]) == 22
    told = "\n".join(report["warnings"])
    for words in (
        "1 rows contradict an earlier row",
        "1 rows repeat an earlier row",
        "chosen is longer than rejected in 95%",
        "valid: the prompts of 1 of 2 rows are also in train",
    ):
        assert words in told


def test_lengths_are_those_of_the_tokens(checked, config, rows):
    config()
    rows("train", *({"prompt": "w1", "chosen": "w20 " * i, "rejected": "w30"} for i in range(1, 5)))
    lengths = checked()["data"]["train"]["lengths"]
    assert (lengths["chosen"]["shortest"], lengths["chosen"]["longest"]) == (2, 5)  # with the end-of-sequence token
    assert lengths["prompt"] == {"shortest": 4, "median": 4, "mean": 4, "p95": 4, "longest": 4}
    assert lengths["whole"]["longest"] == 9


@pytest.mark.slow
def test_a_run_that_does_not_fit(call, config, monkeypatch):
    monkeypatch.setattr(forecast, "total_memory", lambda: 1_000_000)
    done = call(config(batch_size=8))
    assert done.exit_code == 1
    assert "The run cannot start." in done.stdout and "Memory: the run needs" in done.stdout
    for words in (
        "extrapolated from a shorter one",
        "batch_size 8 → 4",
        "memory: low",
        "load_in_4bits: true",
    ):
        assert words in " ".join(done.stdout.split())


@pytest.mark.slow
def test_looking_writes_no_reference_and_no_files(config, tmp_path, tmp_path_factory, monkeypatch):
    from mlx_lm_lora_prefplus.storage import cache_folder

    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path_factory.mktemp("cache")))
    report = build_report([config()])
    assert report["can_start"]
    assert not [entry for entry in cache_folder.entries() if entry.kind == "reference"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run.yaml"]
