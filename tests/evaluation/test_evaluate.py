"""Held-out rows, answers and the verdict on them."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from typer.testing import CliRunner

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.evaluation import evaluate as module
from mlx_lm_lora_prefplus.evaluation import held_out, judges, questions
from mlx_lm_lora_prefplus.host.config.command_line import settings_of
from mlx_lm_lora_prefplus.host.run.references import ReferencePass


def plain_logps(model, tokenizer, row: dict, sides=("chosen", "rejected")) -> list[float]:
    """Summed log-probs of the completions, one row at a time, with nothing of ours."""
    prompt = tokenizer.encode(f"<s> <user> {row['prompt']} <assistant>", add_special_tokens=False)
    found = []
    for side in sides:
        completion = tokenizer.encode(f"{row[side]} </s>", add_special_tokens=False)
        tokens = mx.array([prompt + completion])
        logps = nn.log_softmax(model(tokens[:, :-1]).astype(mx.float32))[0, len(prompt) - 1 :]
        found.append(sum(logps[i, token].item() for i, token in enumerate(completion)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kind"), [("dpo", "lora"), ("dpo", "full"), ("cpo", "dora")])
def test_rewards_are_those_of_plain_forwards(adapters, mode, kind):
    words = adapters(kind)
    resolved = settings_of([*words, "--train-mode", mode, "--beta", "0.5"])
    session, _, name = held_out.open_held_out(resolved)
    scored = held_out.score(session)
    base, tokenizer = mlx_lm.load(words[1])
    tuned, _ = mlx_lm.load(words[1], adapter_path="adapters")
    rows = [json.loads(line) for line in Path("data/test.jsonl").read_text().splitlines()]
    ours, theirs = (np.array([plain_logps(model, tokenizer, row) for row in rows]) for model in (tuned, base))
    assert name == "test"
    np.testing.assert_allclose(scored.policy, ours, atol=1e-3)
    np.testing.assert_allclose(scored.reference, theirs, atol=1e-3)
    np.testing.assert_allclose(scored.rewards, 0.5 * (ours - theirs if mode == "dpo" else ours), atol=1e-3)


def test_policy_and_reference_are_scored_as_in_training(adapters, derivatives, monkeypatch):
    """On Metal, attention has other kernels outside of a derivative."""
    session, _, _ = held_out.open_held_out(settings_of(adapters(), train_mode="dpo"))
    kind, seen = type(session.engine.policy), []
    call = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda *given, **more: seen.append(derivatives[0]) or call(*given, **more))
    held_out.score(session)
    assert seen and set(seen) == {1}


@pytest.mark.parametrize("words", [[], ["--loss-type", "ipo"], ["--ld-alpha", "0.5"], ["--train-mode", "simpo"]])
def test_the_figures_are_those_of_testing(adapters, words):
    """Those of `--test`, whatever the loss makes of the log-probs."""
    resolved = settings_of([*adapters(), *words], train_mode="dpo")
    session, _, _ = held_out.open_held_out(resolved)
    reference = ReferencePass(session).source()
    report = held_out.summary(held_out.score(session), seed=0)
    means = resolved.trainer.evaluate(
        session.engine.policy, reference.fill(session.batches("test"), "test"), resolved.options, {}
    )
    assert report["margin"]["value"] == pytest.approx(means["rewards/margins"], abs=1e-5)
    assert report["accuracy"]["value"] == pytest.approx(means["rewards/accuracies"])


def test_valid_where_there_is_no_test(adapters):
    words = adapters()
    Path("data/test.jsonl").rename("data/valid.jsonl")
    report = module.evaluate(words, module.Judging())
    assert report["rows"]["split"] == "valid" and report["rows"]["n"] == 12


def test_by_length_holds_every_row_once(evaluated):
    report = evaluated()
    assert sum(part["accuracy"]["n"] for part in report["by_length"]) == 12
    assert all(
        one["to"] < other["from"] for one, other in zip(report["by_length"], report["by_length"][1:], strict=False)
    )


def test_unpaired_rows(adapters):
    words = adapters()
    rows = [{"prompt": f"w{i}", "completion": f"w2{i}", "label": i % 2 == 0} for i in range(8)]
    Path("data/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = module.evaluate([*words, "--train-mode", "kto", "--beta", "2"], module.Judging())
    base, tokenizer = mlx_lm.load(words[1])
    tuned, _ = mlx_lm.load(words[1], adapter_path="adapters")
    logps = [[plain_logps(m, tokenizer, row, ["completion"])[0] for row in rows] for m in (tuned, base)]
    rewards = 2 * (np.array(logps[0]) - np.array(logps[1]))
    good = np.array([row["label"] for row in rows])
    assert report["margin"]["value"] == pytest.approx(rewards[good].mean() - rewards[~good].mean(), abs=1e-3)
    assert report["accuracy"]["value"] == ((rewards > 0) == good).mean()
    assert set(report["shift"]) == {"desirable", "undesirable"}
    assert "8 rows), 50 % before training" in report["verdict"]


def test_lists_count_by_their_best_and_worst(adapters):
    words = adapters()
    rows = [{"prompt": f"w{i}", "responses": ["w20", "w21 w22", "w3"], "scores": [3, 1, 2]} for i in range(6)]
    Path("data/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = module.evaluate([*words, "--loss-type", "plackett_luce"], module.Judging())
    assert report["accuracy"]["n"] == 6 and report["ranked_by_log_prob"]["policy"]["n"] == 6


# answers and judges


def test_a_judge_that_likes_the_first_place_finds_nothing(evaluated, monkeypatch):
    monkeypatch.setattr(judges, "function_judge", lambda name: lambda prompt, a, b: 1)
    answers = evaluated(judge="my:first", max_tokens=4)["answers"]
    assert answers["win_rate"]["value"] == 0.5
    assert answers["agrees_in_both_orders"] == answers["same_answers"] / answers["prompts"] < 1


def test_a_function_of_the_users(evaluated, tmp_path):
    (tmp_path / "my_judge.py").write_text(
        "def longer(prompt, a, b):\n    return 0.5 if len(a) == len(b) else len(a) > len(b)\n"
    )
    report = evaluated(
        judge="my_judge:longer", prompts=5, max_tokens=6, temperature=1.0, keep=Path("out/answers.jsonl")
    )
    kept = [json.loads(line) for line in Path("out/answers.jsonl").read_text().splitlines()]
    assert len(kept) == report["answers"]["prompts"] == 5
    for one in kept:
        more = len(one["policy"]) - len(one["reference"])
        assert one["win"] == (0.5 if not more else float(more > 0))
        assert one["prompt"].startswith("<user> w")  # special tokens of this tokenizer's template are plain words
    assert report["answers"]["agrees_in_both_orders"] == 1
    assert "as judged by my_judge:longer" in report["verdict"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "is not of the form MODULE:FUNCTION"),
        ("no_such_module:f", "No module named"),
        ("json:nothing", "no attribute"),
        ("json:__name__", "not a function"),
    ],
)
def test_a_judge_that_is_not_there(name, words):
    with pytest.raises(UserError, match=words):
        judges.function_judge(name)


def test_a_judge_that_returns_something_else(monkeypatch):
    monkeypatch.setattr(json, "loads", lambda *_: "the first one")
    with pytest.raises(UserError, match="returned 'the first one'. Return 1"):
        judges.function_judge("json:loads")("p", "a", "b")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("mode", ["dpo", "cpo"])
def test_the_policys_own_reward(evaluated, mode, kind):
    """The likeliest answers of a policy are likelier to it than those of its reference."""
    answers = evaluated("--train-mode", mode, kind=kind, judge="reward", max_tokens=4, prompts=6)["answers"]
    assert answers["agrees_in_both_orders"] is None
    assert answers["win_rate"]["value"] > 0.5


def test_a_model_as_judge(evaluated, judge_folder):
    answers = evaluated(model=str(judge_folder), prompts=4, max_tokens=4)["answers"]
    assert answers["prompts"] == 4 and answers["judge"] == f"the model {judge_folder}"
    assert 0 <= answers["agrees_in_both_orders"] <= 1


def test_a_model_judges_by_the_likelier_letter(judge_folder):
    judge = judges.model_judge(str(judge_folder))
    model, tokenizer = mlx_lm.load(str(judge_folder))
    asked = judges.QUESTION.format(prompt="w1", a="w2", b="w3")
    logits = model(mx.array([questions.question_tokens(tokenizer, asked)]))[0, -1]
    first, second = (logits[tokenizer.encode(letter)[-1]].item() for letter in "AB")
    assert judge("w1", "w2", "w3") == float(first > second)


def test_a_model_that_knows_no_letters(model_folder):
    with pytest.raises(UserError, match="no single token for A or B"):
        judges.model_judge(str(model_folder))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report(evaluated):
    same = {"judge": "reward", "max_tokens": 4, "prompts": 3, "temperature": 1.0}
    assert evaluated(**same) == evaluated(**same)


# the command


def test_the_command(adapters):
    words = [*adapters(), "--judge", "reward", "--max-tokens", "4", "--prompts", "3"]
    call = lambda *more: CliRunner().invoke(cli.app, ["evaluate", *words, *more], env={"COLUMNS": "80"})  # noqa: E731
    done = call()
    assert done.exit_code == 0
    assert "Held-out rows" in done.stdout and "at equal lengths" in done.stdout
    assert "12 rows)" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    report = json.loads(call("--json").stdout)
    assert " ".join(done.stdout.split()).endswith(f"Next: {report['next']}")
    assert report["verdict"].startswith({"worked": "It worked", "unknown": "No sign"}[report["outcome"]])


@pytest.mark.slow
def test_a_config_file_that_trains_is_evaluated(adapters, tmp_path):
    model, data = adapters()[1], "data"
    Path("run.yaml").write_text(
        f"model: {model}\ndata: {data}\ntrain: true\ntrain_mode: simpo\nadapter_path: adapters\n"
    )
    for words in (["run.yaml"], ["--config", "run.yaml"]):
        assert module.evaluate(words, module.Judging())["mode"] == "simpo"


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--adapter-path", "nowhere"], "no folder nowhere"), (["--data", "empty"], "empty")],
)
def test_what_is_missing_is_told(adapters, more, words):
    Path("empty").mkdir()
    with pytest.raises(UserError, match=words):
        module.evaluate([*adapters(), *more], module.Judging())


def test_two_judges_are_one_too_many():
    with pytest.raises(UserError, match="cannot be combined"):
        module.evaluate([], module.Judging(judge="reward", model="m"))


def test_a_file_for_answers_that_cannot_be_written_is_refused_before_they_are_generated(tmp_path):
    with pytest.raises(UserError, match="Could not write .*A folder has the name of the file"):
        module.evaluate([], module.Judging(judge="reward", keep=tmp_path))
    with pytest.raises(UserError, match="--answers writes the answers that a judge compares. Add --judge"):
        module.evaluate([], module.Judging(keep=tmp_path / "answers.jsonl"))


def test_the_run_that_made_the_adapters_is_heard(adapters):
    """Its objective and its warnings stand in the verdict, as they do in that of `report`."""
    words = adapters()
    lines = [
        {"iteration": 1, "split": "valid", "loss": 0.69, "rewards/accuracies": 0.5, "rows": 12},
        {"iteration": 5, "warning": "rate_too_high", "text": "too high"},
        {"iteration": 9, "split": "valid", "loss": 5.26, "rewards/accuracies": 0.5, "rows": 12},
    ]
    Path("adapters/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rate = {"value": 0.5, "source": "config run.yaml"}
    Path("adapters/run.json").write_text(json.dumps({"settings": {"learning_rate": rate}}))
    report = module.evaluate(words, module.Judging())
    assert report["outcome"] == "failed" and report["verdict"].startswith("It diverged: ")
    assert report["next"].startswith("train again with a lower `learning_rate` (now 0.5)")
    assert "validation loss 5.260, 0.690 before; warnings: 1 during training (rate_too_high)" in report["verdict"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cpo", "simpo"])
def test_without_a_reference_the_start_is_that_of_the_base_model(adapters, mode):
    words = [*adapters(), "--train-mode", mode]
    report = module.evaluate(words, module.Judging())
    base, tokenizer = mlx_lm.load(words[1])
    rows = [json.loads(line) for line in Path("data/test.jsonl").read_text().splitlines()]
    logps = np.array([plain_logps(base, tokenizer, row) for row in rows])
    if mode == "simpo":
        logps /= [[len(row[side].split()) + 1 for side in ("chosen", "rejected")] for row in rows]
    assert report["before"]["accuracy"] == pytest.approx((logps[:, 0] > logps[:, 1]).mean())
    assert 0 < report["before"]["accuracy"] < 1


def test_lengths_that_explain_the_accuracy_are_said(adapters):
    report = module.evaluate([*adapters(), "--train-mode", "dpo"], module.Judging())
    assert set(report["length_bias"]) == {"chosen_longer", "rejected_longer", "mean_difference", "strong"}
    biased = {"chosen_longer": 0.9, "rejected_longer": 0.1, "mean_difference": 3.0, "strong": True}
    assert module.evidence_of({**report, "length_bias": biased}).lengths == ("longer", 0.9)
    assert module.evidence_of({**report, "length_bias": None}).lengths is None
