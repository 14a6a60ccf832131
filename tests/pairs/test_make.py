"""From prompts to rows that training reads; killed and gone on with; what is refused."""

import itertools
import json
from pathlib import Path

import mlx_lm_lora.train as host
import pytest
import yaml

from mlx_lm_lora_prefplus.data.formats.detect import read_examples
from mlx_lm_lora_prefplus.data.formats.example import Example
from mlx_lm_lora_prefplus.data.sources.files import read_jsonl
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.pairs import make
from mlx_lm_lora_prefplus.pairs.settings import pair_settings
from mlx_lm_lora_prefplus.settings import COLUMNS
from tests.pairs.conftest import REWARD, contents, rows_of, write_prompts


def examples(file: Path, pairing: str = "best_worst") -> list[Example]:
    features = dict.fromkeys(COLUMNS)
    _, found = read_examples(read_jsonl(file), str(file), features, "paired", pairing)  # pyright: ignore
    return [one for one in found if isinstance(one, Example)]


def test_rows_hold_all_answers_and_training_makes_pairs_of_best_and_worst(pairs, here):
    result = pairs()
    assert result.exit_code == 0, result.output
    rows = rows_of(here / "pairs/train.jsonl")
    assert [row["prompt"][0]["content"] for row in rows] == ["w1 w2", "w3", "w4 w5", "w6 w7", "w8", "w9 w10", "w11"]
    usable = [row for row in rows if "refused" not in row]
    assert usable and all(len(row["responses"]) == 3 for row in rows)
    for row, example in zip(usable, examples(here / "pairs/train.jsonl"), strict=True):
        best, worst = (row["scores"].index(edge(row["scores"])) for edge in (max, min))
        texts = [completion[0]["content"] for completion in example.completions]
        assert texts == [row["responses"][best], row["responses"][worst]]
    assert "mlx_lm_lora.train --config pairs/train.yaml" in result.output


@pytest.mark.slow
def test_the_printed_command_trains(pairs, here, monkeypatch):
    from mlx_lm_lora_prefplus.host.seam.install import activate

    activate(host)
    (here / "run.yaml").write_text("train_mode: cpo\niters: 2\nlearning_rate: 1e-5\nbatch_size: 1\nfuse: false\n")
    assert pairs("--config", "run.yaml").exit_code == 0
    config = yaml.safe_load((here / "pairs/train.yaml").read_text())
    assert config["train_mode"] == "cpo" and config["iters"] == 2 and config["learning_rate"] == 1e-5
    monkeypatch.setattr("sys.argv", ["mlx_lm_lora.train", "--config", "pairs/train.yaml"])
    host.main()
    assert (here / "pairs/adapters/adapters.safetensors").is_file()


def test_a_prompt_that_occurs_twice_is_answered_once(pairs, here, monkeypatch):
    asked = []
    real = make.sample
    monkeypatch.setattr(
        make, "sample", lambda model, tok, chunk, settings: asked.extend(chunk) or real(model, tok, chunk, settings)
    )
    assert json.loads(pairs("--json").stdout)["prompts"]["duplicates"] == 1
    assert len(asked) == len({prompt.text for prompt in asked}) == 7


def test_prompts_of_one_split_are_not_in_another(pairs, here):
    (here / "data").mkdir()
    write_prompts(here / "data/train.jsonl", "w1", "w2")
    write_prompts(here / "data/test.jsonl", "w2", "w3")
    summary = json.loads(pairs("--data", "data", "--json").stdout)
    assert summary["prompts"]["distinct"] == {"train": 2, "test": 1}
    assert len(rows_of(here / "pairs/test.jsonl")) == 1


@pytest.mark.parametrize("cut", [0, 40])
@pytest.mark.slow
def test_killed_and_gone_on_with_gives_the_same_bytes(pairs, here, monkeypatch, cut):
    """Killed while the third chunk is sampled, with so many bytes of the last line lost."""
    assert pairs(output="straight").exit_code == 0
    calls = itertools.count()
    real = make.sample

    def dying(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(make, "sample", dying)
    assert pairs(output="killed").exit_code != 0
    journal = here / "killed" / make.ANSWERS
    assert len(rows_of(journal)) == 1 + 4
    with journal.open("r+b") as file:
        file.truncate(max(0, journal.stat().st_size - cut))
    monkeypatch.setattr(make, "sample", real)
    assert pairs(output="killed").exit_code == 0
    assert contents(here / "killed") == contents(here / "straight")


def test_nothing_is_sampled_or_scored_twice(pairs, here, monkeypatch):
    assert pairs().exit_code == 0
    before = contents(here / "pairs")
    monkeypatch.setattr(make, "sample", None)
    monkeypatch.setattr(make.Scorers, "__call__", None)
    assert pairs().exit_code == 0
    assert contents(here / "pairs") == before


def test_another_reward_uses_the_same_answers(pairs, here, monkeypatch):
    pairs()
    before = contents(here / "pairs")
    monkeypatch.setattr(make, "sample", None)
    assert pairs(scored=("--reward", "length:2-3")).exit_code == 0
    after = contents(here / "pairs")
    assert after["answers.jsonl"] == before["answers.jsonl"] and after["train.jsonl"] != before["train.jsonl"]
    assert len(list((here / "pairs").glob("rewards-*.jsonl"))) == 2
    (here / "reward.py").write_text(REWARD.replace("range(20)", "range(10)"))
    assert pairs().exit_code == 0
    assert len(list((here / "pairs").glob("rewards-*.jsonl"))) == 3, "a changed function scores anew"


@pytest.mark.slow
def test_other_settings_do_not_mix_with_the_answers_there(pairs, here):
    pairs()
    before = contents(here / "pairs")
    result = pairs("--temperature", "1.5")
    assert isinstance(result.exception, UserError)
    assert "temperature was 0.8 and is 1.5" in str(result.exception) and "--overwrite" in str(result.exception)
    assert contents(here / "pairs") == before
    assert pairs("--temperature", "1.5", "--overwrite").exit_code == 0
    assert contents(here / "pairs")["answers.jsonl"] != before["answers.jsonl"]


def test_rows_of_the_user_are_not_overwritten(pairs, here):
    (here / "mine").mkdir()
    write_prompts(here / "mine/train.jsonl", "w1")
    result = pairs(output="mine")
    assert isinstance(result.exception, UserError) and "was not made by this command" in str(result.exception)


def test_differences_below_the_margin_are_refused(pairs, here):
    summary = json.loads(pairs("--json", "--min-margin", "100").stdout)
    assert summary["pairs"]["usable"] == {}
    assert "mlx_lm_lora.train" not in pairs("--min-margin", "100").output
    assert sum(summary["pairs"]["refused"].values()) == 7
    assert all(set(row["scores"]) == {None} for row in rows_of(here / "pairs/train.jsonl"))


def test_a_judge_that_takes_the_first_gives_no_pair(pairs, here):
    (here / "judge.py").write_text("def first(prompt, a, b):\n    return 1\n")
    summary = json.loads(pairs("--json", scored=("--judge", "judge.py:first")).stdout)
    assert summary["judge_decided"] == 0 and summary["pairs"]["usable"] == {}


def test_a_judge_that_is_sure_ranks_the_answers(pairs, here):
    (here / "judge.py").write_text("def more(prompt, a, b):\n    return (a > b) + 0.5 * (a == b)\n")
    assert pairs(scored=("--judge", "judge.py:more")).exit_code == 0
    for row in rows_of(here / "pairs/train.jsonl"):
        order, (scores,) = sorted(row["responses"]), row["rewards"].values()
        assert [order[round(2 * score)] for score in scores] == row["responses"]


def test_settings_stand_in_the_config(pairs, here, model_folder):
    (here / "run.yaml").write_text("pairs:\n  temperature: 1.2\n  min_margin: 2\n  reward_weights: [3]\n")
    assert pairs("--config", "run.yaml").exit_code == 0
    header = rows_of(here / "pairs/answers.jsonl")[0]
    assert header["temperature"] == 1.2
    assert "pairs" not in yaml.safe_load((here / "pairs/train.yaml").read_text())
    usable = [row for row in rows_of(here / "pairs/train.jsonl") if "refused" not in row]
    for row in usable:
        expected = [3 * value for value in row["rewards"]["reward.py:words"]]
        assert all(score in (value, None) for score, value in zip(row["scores"], expected, strict=True))
    assert usable


def test_adapters_are_the_policy_and_training_goes_on_from_them(pairs, here, model_folder):
    from mlx_lm_lora_prefplus.engine.files.adapter_files import save_adapters
    from mlx_lm_lora_prefplus.host import models, trained
    from mlx_lm_lora_prefplus.settings import RunSettings
    from tests.conftest import with_lora

    pairs()
    settings = RunSettings(model=str(model_folder), lora_parameters={"rank": 4, "dropout": 0.0, "scale": 10.0})
    model = with_lora(models.load_base(settings)[0])
    save_adapters(model, here / "sft/adapters.safetensors", trained.adapter_config(settings), None)
    assert pairs("--adapter-path", "sft", output="tuned").exit_code == 0
    both = [[row["responses"] for row in rows_of(here / name / "train.jsonl")] for name in ("pairs", "tuned")]
    assert both[0] != both[1]
    config = yaml.safe_load((here / "tuned/train.yaml").read_text())
    assert config["resume_adapter_file"] == config["reference_model_path"] == str(here / "sft/adapters.safetensors")
    assert config["lora_parameters"]["rank"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-n", "1"), "one answer cannot make a pair"),
        (("--temperature", "0"), "Give a temperature above 0"),
        (("--top-p", "0"), "top_p: 0"),
        (("--seed", "1", "--seed", "1"), "repeats a seed"),
        (("--reward-weights", "1,2"), "2 weights for 1 scores"),
        (("--adapter-path", "nowhere"), "nowhere does not exist"),
        (("--reward-model", "./nowhere"), "there is no folder ./nowhere"),
    ],
)
def test_what_cannot_work_is_told_at_once(pairs, here, words, said):
    result = pairs(*words)
    assert isinstance(result.exception, UserError) and said in str(result.exception)
    assert not list(here.glob("pairs/*.jsonl"))


def test_pictures_are_refused_before_anything_is_loaded(pairs, here):
    (here / "pictures.jsonl").write_text(json.dumps({"prompt": "w2", "images": ["a.png"]}) + "\n")
    result = pairs("--data", "pictures.jsonl", "--model", "nowhere")
    assert isinstance(result.exception, UserError)
    assert "pairs: pictures.jsonl contains rows with pictures, and answers to pictures" in str(result.exception)
    assert not (here / "pairs").exists()


def test_nothing_that_scores(pairs):
    result = pairs(scored=())
    assert isinstance(result.exception, UserError) and "judge_model (FOLDER)" in str(result.exception)


def test_a_key_that_does_not_exist(pairs, here):
    (here / "run.yaml").write_text("pairs:\n  temprature: 1.2\n")
    result = pairs("--config", "run.yaml")
    assert isinstance(result.exception, UserError) and "Did you mean temperature?" in str(result.exception)


def test_older_versions_of_typer_pass_tuples():
    settings = pair_settings({"reward": ("length:1-9",), "seeds": (1, 2)}, "pairs")
    assert settings.reward == ["length:1-9"] and settings.seeds == [1, 2]
