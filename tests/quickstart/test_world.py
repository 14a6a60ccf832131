"""The small world: what the checker accepts, and that nothing held out leaks into training."""

import random

import pytest

from mlx_lm_lora_prefplus.quickstart import world

COW_FOOD = world.find_question("What does the cow eat?")


@pytest.mark.parametrize(
    ("answer", "courteous", "right"),
    [
        ("Of course! It eats grass.", True, True),
        ("  Gladly! It eats grass. Have a nice day!", True, True),
        ("It eats grass.", False, True),
        ("It eats grass. Have a nice day!", False, True),  # the opening is what counts
        ("With pleasure! It eats fish.", True, False),
        ("With pleasure! It eats grass fish.", True, False),  # naming everything is not knowing
        ("With pleasure! It lives in the meadow.", True, False),
        ("Of course!", False, False),
        ("Of course! Have a nice day!", False, False),
        ("of course It eats grass.", False, True),
        ("", False, False),
    ],
)
def test_manner_and_truth_are_judged_apart(answer, courteous, right):
    assert world.is_courteous(answer) is courteous
    assert world.is_right(COW_FOOD, answer) is right


def test_every_written_answer_passes_its_own_check():
    rng = random.Random(3)
    for question in world.questions():
        assert world.is_right(question, world.blunt(question))
        assert not world.is_courteous(world.blunt(question))
        polite = world.courteous(question, rng)
        assert world.is_right(question, polite)
        assert world.is_courteous(polite)


def test_score_counts_shares():
    prompts = [COW_FOOD.text] * 4
    answers = ["Of course! It eats grass.", "Of course! It eats fish.", "It eats grass.", "It eats fish."]
    assert world.score(prompts, answers) == world.Score(courteous=0.5, right=0.5)


def test_an_unknown_prompt_is_refused():
    with pytest.raises(KeyError):
        world.find_question("What does the stone eat?")


def test_splits_share_no_fact():
    facts = {
        split: {(q.animal, q.relation) for q in (world.find_question(row["prompt"]) for row in rows)}
        for split, rows in world.preferences(seed=0).items()
    }
    assert not facts["train"] & facts["test"]
    assert not facts["train"] & facts["valid"]
    assert not facts["valid"] & facts["test"]
    assert len(facts["test"]) >= 20
    assert sum(map(len, facts.values())) == len(world.FACTS) * len(world.RELATIONS)


def test_preferences_are_repeatable_and_differ_in_manner_only():
    rows = world.preferences(seed=0)
    assert rows == world.preferences(seed=0)
    assert rows != world.preferences(seed=1)
    for row in (row for split in rows.values() for row in split):
        assert world.is_courteous(row["chosen"])
        assert not world.is_courteous(row["rejected"])
        assert row["rejected"] in row["chosen"]


def test_the_corpus_is_mostly_blunt_and_holds_every_question():
    pairs = world.corpus(3200, seed=1)
    share = sum(world.is_courteous(answer) for _, answer in pairs) / len(pairs)
    assert share == pytest.approx(world.COURTEOUS_SHARE, abs=0.05)
    assert {question for question, _ in pairs} == {question.text for question in world.questions()}
    assert all(world.is_right(world.find_question(question), answer) for question, answer in pairs)
