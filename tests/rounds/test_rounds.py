"""Rounds of pairs, training and evaluation: killed anywhere, gone on with, and what they do to the score."""

import itertools
import json
import signal
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.engine.train import loop
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.pairs import make
from mlx_lm_lora_prefplus.report.rounds import expanded, verdict_of
from mlx_lm_lora_prefplus.rounds import run as module
from mlx_lm_lora_prefplus.rounds.run import figures
from tests.pairs.conftest import REWARD, write_prompts


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Prompts and a reward function."""
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "prompts").mkdir()
    write_prompts(folder / "prompts/train.jsonl", *(f"w{n} w{n + 1}" for n in range(6)))
    write_prompts(folder / "prompts/test.jsonl", "w1", "w2", "w3")
    (folder / "reward.py").write_text(REWARD)
    (folder / "pictures").mkdir()
    write_prompts(folder / "pictures/train.jsonl", "w1")
    row = {"prompt": "w2", "images": ["a.png"]}
    (folder / "pictures/valid.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def rounds(place, model_folder):
    """Run two rounds of two steps in the mode dpo, with changes of the config; returns the result and the folder."""

    def run(name: str, *words: str, **changes):
        sampling = {"num_generations": 3, "max_tokens": 5, "generation_batch_size": 9, "reward": "reward.py:words"}
        config = {
            **{"model": str(model_folder), "data": "prompts", "adapter_path": name, "train_mode": "dpo"},
            **{"iters": 2, "batch_size": 2, "learning_rate": 1e-3, "save_every": 1, "rounds": 2, "pairs": sampling},
            **{"lora_parameters": {"rank": 4, "dropout": 0.1, "scale": 10.0}, **changes},
        }
        (place / f"{name}.yaml").write_text(yaml.safe_dump(config))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            return CliRunner().invoke(cli.app, ["rounds", f"{name}.yaml", *words]), place / name

    return run


@pytest.fixture(scope="module")
def straight(rounds) -> Path:
    """Two rounds that were never stopped."""
    result, folder = rounds("straight")
    assert result.exit_code == 0, result.output
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """The bytes of everything that does not depend on the time or on the folder's name."""
    names = ("*adapters.safetensors", "*.jsonl", "rounds.json", "summary.json", "adapter_config.json")
    files = {file for name in names for file in folder.rglob(name) if file.name not in ("metrics.jsonl", "best")}
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def config_of(folder: Path) -> dict:
    return yaml.safe_load((folder / "pairs/train.yaml").read_text())


@pytest.mark.slow
def test_each_round_begins_with_the_policy_of_the_last(straight):
    record = json.loads((straight / "rounds.json").read_text())
    assert [one["folder"] for one in record["rounds"]] == ["round-1", "round-2"]
    assert record["held_out"] == "test" and [len(some) for some in record["scores"]] == [3, 3, 3]
    config = config_of(straight / "round-2")
    assert config["resume_adapter_file"] == str(straight / "round-1/adapters.safetensors")
    assert "reference_model_path" not in config and config["fuse"] is False
    log = (straight / "round-2/train.log").read_text()
    assert "Reference: the model with its adapters off" in log and "although training starts" not in log
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (straight / name).read_bytes() == (straight / "round-2" / name).read_bytes()
    headers = [json.loads(file.read_text().splitlines()[0]) for file in sorted(straight.rglob("answers.jsonl"))]
    assert len({header["adapter"] for header in headers}) == len({tuple(header["seeds"]) for header in headers}) == 3


@pytest.mark.slow
def test_the_reference_of_the_last_round(rounds, straight):
    """The first round is that of the initial reference; the second begins at its reference, where the margin is 0."""
    result, folder = rounds("previous", "--round-reference", "previous")
    assert result.exit_code == 0, result.output
    assert (folder / "round-1/adapters.safetensors").read_bytes() == (
        straight / "round-1/adapters.safetensors"
    ).read_bytes()
    assert config_of(folder / "round-2")["reference_model_path"] == str(folder / "round-1/adapters.safetensors")
    assert (folder / "adapters.safetensors").read_bytes() != (straight / "adapters.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_everywhere_it_goes_on_to_the_same_bytes(rounds, straight):
    """Killed in the second round: while it samples, scores and trains, before the round is noted, and at the end."""
    kills = [
        (make, "sample", 2),
        (make.Scorers, "__call__", 3),
        (loop.Loop, "optimizer_step", 1),
        (module, "_write", 1),
        (make, "sample", 0),
    ]
    for place, (target, name, calls) in enumerate(kills):
        counter, real = itertools.count(), getattr(target, name)

        def dying(*arguments, counter=counter, real=real, calls=calls, **options):
            if next(counter) == calls:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, name, dying)
            result, folder = rounds("killed")
        assert isinstance(result.exception, SystemExit) and result.exit_code == 130, place
        assert results(folder) != results(straight), place
    assert rounds("killed")[0].exit_code == 0
    assert results(folder) == results(straight)


@pytest.mark.slow
def test_a_finished_run_computes_nothing_and_more_rounds_go_on(rounds, straight):
    result, folder = rounds("longer", rounds=1)
    assert result.exit_code == 0
    before = results(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "sample", None)
        patch.setattr(module, "train", None)
        assert rounds("longer", rounds=1)[0].exit_code == 0
    assert results(folder) == before
    assert rounds("longer", rounds=2)[0].exit_code == 0
    ours = {name: one for name, one in results(folder).items() if not name.startswith("after/round-1")}
    assert ours == results(straight)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds": 0}, "is not valid"),
        ({"round_reference": "last"}, "is not one of initial, previous"),
        ({"round_refrence": "previous"}, "round_refrence is not a key; did you mean round_reference?"),
        ({"rouds": 2}, "rouds is not a key; did you mean rounds?"),
        ({"round_reference": "previous", "train_mode": "cpo"}, "has no reference"),
        ({"pairs": {}}, "nothing scores the answers"),
        ({"pairs": 3}, "is not a mapping"),
        ({"pairs": {"reward": "plite.py:best"}}, "reward plite.py:best: there is no file plite.py"),
        ({"pairs": {"reward_model": "prompts"}}, "reward_model: there is no folder prompts with weights"),
        ({"pairs": {"reward": "length:9"}}, "reward length:9 is invalid"),
        ({"resume_adapter_file": "nowhere"}, "resume_adapter_file: nowhere does not exist"),
        ({"data": "pictures"}, "rounds: pictures/valid.jsonl contains rows with pictures, and answers to pictures"),
    ],
)
def test_what_cannot_work_is_told_at_once(rounds, changes, said):
    result, folder = rounds("wrong", **changes)
    assert isinstance(result.exception, UserError) and said in str(result.exception)
    assert "--" not in str(result.exception), "the user wrote keys, not flags"
    assert not list(folder.glob("*"))


def test_other_settings_and_other_runs_are_not_mixed(rounds, straight, place):
    result, _ = rounds("straight", learning_rate=1e-4)
    assert isinstance(result.exception, UserError) and "learning_rate was 0.001 and is 0.0001" in str(result.exception)
    (place / "other").mkdir()
    (place / "other/adapters.safetensors").write_bytes(b"")
    result, _ = rounds("other")
    assert isinstance(result.exception, UserError) and "adapters of another run" in str(result.exception)


def test_an_edited_reward_file_is_not_mixed_with_its_old_scores(rounds, straight, place):
    (place / "reward.py").write_text(f"{REWARD}# edited\n")
    refused, _ = rounds("straight")
    forced, _ = rounds("straight", resume="force")
    (place / "reward.py").write_text(REWARD)
    changed = "the content of reward.py:words was changed"
    assert isinstance(refused.exception, UserError) and changed in str(refused.exception)
    assert forced.exit_code == 0 and f"[WARNING] resume: force continues although {changed}" in forced.output


def test_scores_of_other_prompts_are_not_compared(rounds, place):
    prompts = place / "prompts/test.jsonl"
    own = prompts.read_text()
    result, _ = rounds("prompts-changed", rounds=1)
    assert result.exit_code == 0, result.output
    try:
        write_prompts(prompts, "w1", "w2")
        result, _ = rounds("prompts-changed", rounds=2)
    finally:
        prompts.write_text(own)
    assert "the test prompts were changed after the first scores" in str(result.exception)
    assert rounds("prompts-changed", rounds=2)[0].exit_code == 0, "restored"


def test_a_reward_is_corrected_before_the_first_score(rounds, place):
    sampling = {"num_generations": 3, "max_tokens": 5, "reward": "own.py:best"}
    (place / "own.py").write_text("def best(prompt, completion):\n    return 1 / 0\n")
    result, _ = rounds("corrected", pairs=sampling)
    assert isinstance(result.exception, UserError) and "reward own.py:best ended with" in str(result.exception)
    (place / "own.py").write_text("def best(prompt, completion):\n    return 1.0\n")
    result, _ = rounds("corrected", pairs=sampling)
    assert result.exit_code == 0, result.exception


def test_interrupted_it_says_that_the_same_command_goes_on(rounds, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(make, "sample", lambda *_: signal.raise_signal(signal.SIGINT))
        result, folder = rounds("interrupted", rounds=1)
    assert result.exit_code == 130
    assert f"kept in {folder.name}. Run the same command again to continue." in result.output
    step = loop.Loop.optimizer_step
    stopped = lambda *arguments: (step(*arguments), signal.raise_signal(signal.SIGINT))  # noqa: E731
    monkeypatch.setattr(loop.Loop, "optimizer_step", stopped)
    result, _ = rounds("interrupted", rounds=1)
    assert result.exit_code == 130 and "Interrupted" not in result.output
    assert "the same command continues the run from here" in result.output and "--resume" not in result.output


def test_rounds_end_where_no_pair_is_left(rounds):
    sampling = {"num_generations": 3, "max_tokens": 5, "reward": "length:-99"}
    result, folder = rounds("ended", pairs=sampling)
    assert result.exit_code == 0 and "The rounds end here" in result.output
    assert "9 prompts, all scores are the same" in result.output and "[WARNING] no prompt gives" in result.output
    assert "adapters of the last round" not in result.output
    record = json.loads((folder / "rounds.json").read_text())
    assert record["rounds"] == [] and len(record["scores"]) == 1


def test_the_report_shows_the_rounds(straight, tmp_path):
    result = CliRunner().invoke(cli.app, ["report", str(straight), "-o", str(tmp_path / "report.html")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    assert '<section id="rounds">' in page and "round-1" in page and "round-2" in page
    (record,) = expanded([straight])[1]
    assert verdict_of(record) in result.output.replace("\n", " ") or verdict_of(record) in result.output


def test_gains_are_taken_prompt_by_prompt():
    before = [float(n % 7) for n in range(40)]
    found = figures([before, [value + 0.5 for value in before], before])
    assert found[1]["gain"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 40}
    assert found[2]["gain"]["value"] == -0.5 and found[2]["gain_in_all"]["value"] == 0
    assert figures([[0.3], [0.1 + 0.2]])[1]["gain"]["value"] == 0
    record = {"held_out": "test", "figures": found, "rounds": [{}, {}]}
    assert "did not change beyond chance" in verdict_of(record)
    assert "rose" in verdict_of({**record, "figures": found[:2], "rounds": [{}]})
