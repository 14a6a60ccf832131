"""Rules, functions, reward models and judges."""

import json
import re

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load

from mlx_lm_lora_prefplus.data.formats.example import Example
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.evaluation import questions
from mlx_lm_lora_prefplus.pairs.prompts import Prompt
from mlx_lm_lora_prefplus.pairs.rows import ALIKE, NOISE, SAME, UNDECIDED, ends, make_row, refusal
from mlx_lm_lora_prefplus.pairs.scores import reward_models
from mlx_lm_lora_prefplus.pairs.scores.functions import function_reward
from mlx_lm_lora_prefplus.pairs.scores.judged import judge_all, load_judge
from mlx_lm_lora_prefplus.pairs.scores.rules import find_rule
from mlx_lm_lora_prefplus.pairs.scores.score import Scorers
from mlx_lm_lora_prefplus.pairs.settings import PairSettings
from tests.pairs.conftest import answers

ASKED = Prompt("train", Example(1, [{"role": "user", "content": "w1 w2"}], [], []), [1], {"answer": "4", "n": 2})


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("length:2-4", "a b c", 1.0),
        ("length:2-4", "a", 0.5),
        ("length:2-4", "a b c d e", 0.8),
        ("length:-2", "a b c d", 0.5),
        ("length:4-", "a b c d e f", 1.0),
        ("regex:^Yes\\b", "Yes, sir", 1.0),
        ("regex:^Yes\\b", "Yesterday", 0.0),
        ("json", '{"a": [1, 2]}', 1.0),
        ("json", '```json\n{"a": 1}\n```', 1.0),
        ("json", "{'a': 1}", 0.0),
        ('command:grep -q \'"answer": "4"\'', "any", 1.0),
        ("command:grep -q nothing-like-this", "any", 0.0),
    ],
)
def test_rules(rule, text, expected):
    score = find_rule(rule)
    assert score is not None and score(ASKED, answers(text)[0]) == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["length:", "length:5-2", "length:a", "regex:(", "command:no-such-program-here"])
def test_rules_that_are_written_wrong(rule):
    with pytest.raises(UserError, match=f"reward {re.escape(rule)}"):
        find_rule(rule)


FUNCTIONS = """
def plain(prompt, completion):
    return len(prompt) + len(completion)
def with_row(prompt, completion, answer):
    return completion == answer
def trl(prompts, completions, **columns):
    return [len(p) + len(c) + n for p, c, n in zip(prompts, completions, columns["n"])]
def host(prompts, completions, answer, types=None):
    return [float(c == a) for c, a in zip(completions, answer)]
def nothing(text):
    return 1
def fails(prompt, completion):
    return 1 / 0
def nan(prompt, completion):
    return float("nan")
def few(prompts, completions):
    return [1.0]
number = 3
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)


@pytest.mark.parametrize(
    ("name", "expected"), [("plain", [6, 7]), ("with_row", [1, 0]), ("trl", [8, 9]), ("host", [1, 0])]
)
@pytest.mark.parametrize("place", ["my_rewards.py", "my_rewards"])
def test_functions(functions, monkeypatch, place, name, expected):
    score, digest = function_reward(f"{place}:{name}")
    assert score(ASKED, answers("4", "44")) == expected and digest


def test_an_edited_judge_has_another_digest(functions, tmp_path):
    settings = PairSettings(judge="my_rewards.py:judge")
    digests = []
    for change in ("", "# edited\n"):
        (tmp_path / "my_rewards.py").write_text(f"{FUNCTIONS}def judge(prompt, a, b):\n    return 1\n{change}")
        digests.append(Scorers(settings).digest)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_rewards.py:nothing", "Write def nothing"),
        ("my_rewards.py:number", "is not a function"),
        ("my_rewards.py:absent", "absent"),
        ("other.py:plain", "there is no file other.py"),
        ("plain", "MODULE:FUNCTION"),
    ],
)
def test_functions_that_are_not_there(functions, name, said):
    with pytest.raises(UserError, match=said):
        function_reward(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [("fails", "ZeroDivisionError.*answers are kept"), ("nan", "finite"), ("few", "one finite number")],
)
def test_functions_that_fail(functions, name, said):
    score, _ = function_reward(f"my_rewards.py:{name}")
    with pytest.raises(UserError, match=said):
        score(ASKED, answers("a", "b"))


def copied(folder, target, rename):
    """Copy a model with other words in its vocabulary."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    for new, old in rename.items():
        words[new] = words.pop(old)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    return target


def test_a_classifier_scores_the_last_token(model_folder, tmp_path):
    folder = copied(model_folder, tmp_path / "rm", {})
    model, tokenizer = load(str(model_folder))[:2]
    weights = dict(mx.load(str(next(folder.glob("*.safetensors")))).items())
    weights = {name: value for name, value in weights.items() if not name.startswith("lm_head")}
    weights["score.weight"] = mx.random.normal((1, 128), key=mx.random.key(1))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    given = answers("w3", "w4 w5 w6 w7")
    found = reward_models.load_reward_model(str(folder))(ASKED, given)
    for answer, score in zip(given, found, strict=True):
        tokens = tokenizer.encode(f"<s> <user> w1 w2 <assistant> {answer.text} </s>", add_special_tokens=False)
        hidden = model.model(mx.array([tokens]))[0, -1]
        assert score == pytest.approx((hidden * weights["score.weight"][0]).sum().item(), abs=1e-4)


def test_a_classifier_with_two_outputs_or_a_missing_weight(model_folder, tmp_path):
    folder = copied(model_folder, tmp_path / "rm", {})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(UserError, match="one output"):
        reward_models.load_reward_model(str(folder))
    weights = dict(mx.load(str(next(folder.glob("*.safetensors")))).items())
    mx.save_safetensors(str(folder / "model.safetensors"), {**weights, "score.weight": mx.zeros((2, 128))})
    with pytest.raises(UserError, match=r"\(2, 128\)"):
        reward_models.load_reward_model(str(folder))
    del weights["model.norm.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), {**weights, "score.weight": mx.zeros((1, 128))})
    with pytest.raises(UserError, match="model.norm.weight"):
        reward_models.load_reward_model(str(folder))


def test_a_chat_model_scores_by_yes_and_no(model_folder, tmp_path, monkeypatch):
    folder = copied(model_folder, tmp_path / "yes", {"Yes": "w36", "yes": "w37", "No": "w38", "no": "w39"})
    monkeypatch.setattr(questions, "ROWS", 2)
    given = answers("w3", "w4 w5 w6 w7", "w8 w9")
    found = reward_models.load_reward_model(str(folder))(ASKED, given)
    model, tokenizer = load(str(folder))[:2]
    words = tokenizer.get_vocab()
    for answer, score in zip(given, found, strict=True):
        question = reward_models.QUESTION.format(prompt="w1 w2", answer=answer.text)
        tokens = tokenizer.encode(f"<s> <user> {question} <assistant>", add_special_tokens=False)
        logits = model(mx.array([tokens]))[0, -1]
        yes, no = (np.logaddexp(*(logits[words[w]].item() for w in both)) for both in (("Yes", "yes"), ("No", "no")))
        assert score == pytest.approx(yes - no, abs=1e-4)
    with pytest.raises(UserError, match="no single token"):
        reward_models.load_reward_model(str(model_folder))


def test_a_model_judges_each_two_in_both_orders(model_folder, tmp_path):
    folder = copied(model_folder, tmp_path / "judge", {"A": "w38", "B": "w39"})
    compare = load_judge(None, str(folder))
    found = judge_all(compare, ASKED, answers("w3", "w4", "w3"))
    assert found.compared == 2 and found.scores[0] == found.scores[2]


def test_only_a_win_in_both_orders_is_a_win():
    def compare(prompt, pairs):
        """Sure of c against a; of everything else it takes the first."""
        return [{("a", "c"): 0.0, ("c", "a"): 1.0}.get(pair, 1.0) for pair in pairs]

    found = judge_all(compare, ASKED, answers("a", "b", "c", "b"))
    assert found.undecided == [(0, 1), (0, 3), (1, 2), (2, 3)] and found.compared == 5
    assert found.scores == pytest.approx([1 / 3, 0.5, 2 / 3, 0.5])


@pytest.mark.parametrize(
    ("texts", "totals", "undecided", "reason"),
    [
        (("a", "b", "c"), (1, 2, 3), [], None),
        (("a", "b", "c"), (1, 2, 3), [[0, 1]], None),
        (("a", "b", "c"), (1, 2, 3), [[0, 2]], UNDECIDED),
        (("a", "b", "c"), (1, 1, 1), [], SAME),
        (("a", "b", "c"), (1, 1.2, 1.4), [], NOISE),
        (("a", "a", ""), (1, 1, 3), [], ALIKE),
    ],
)
def test_rows_that_give_no_pair(texts, totals, undecided, reason):
    settings = PairSettings(min_margin=0.5, reward=["json"])
    assert refusal(answers(*texts), {"undecided": undecided}, totals, settings) == reason


def test_an_empty_answer_is_neither_best_nor_worst():
    assert ends(answers("", "b", "c", " "), [9, 1, 2, -9]) == (2, 1)


def test_every_pair_leaves_out_differences_below_the_margin():
    settings = PairSettings(min_margin=0.5, reward=["json"])
    given, totals = answers("a", "b", "c", "d"), [0.0, 2.0, 0.3, 2.1]
    row = make_row(ASKED, given, {"rewards": {"r": totals}}, totals, settings, every_pair=True)
    assert row["scores"] == pytest.approx([0.15, 2.05, 0.15, 2.05])
    row = make_row(ASKED, given, {"rewards": {"r": totals}}, totals, settings, every_pair=False)
    assert row["scores"] == totals
