"""A small world of animals: facts, two styles of answers, and the check of an answer.

Each fact has two questions and two styles of answer. Pretraining uses mostly the blunt style. The preference data
prefers the courteous one. The check judges style and truth separately, so it detects a run that gains courtesy but
loses facts.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

RELATIONS = ("food", "home", "sound", "young")
"""The facts about an animal, in the order of the columns of `FACTS`."""

FACTS = {
    "cow": ("grass", "meadow", "moo", "calf"),
    "horse": ("hay", "stable", "neigh", "foal"),
    "sheep": ("clover", "hill", "baa", "lamb"),
    "goat": ("leaves", "mountain", "bleat", "kid"),
    "pig": ("corn", "sty", "oink", "piglet"),
    "dog": ("meat", "kennel", "woof", "puppy"),
    "cat": ("fish", "house", "meow", "kitten"),
    "mouse": ("cheese", "cellar", "squeak", "pinkie"),
    "rabbit": ("carrots", "burrow", "thump", "bunny"),
    "hen": ("grain", "coop", "cluck", "chick"),
    "duck": ("weeds", "pond", "quack", "duckling"),
    "owl": ("mice", "barn", "hoot", "owlet"),
    "eagle": ("fish", "mountain", "screech", "eaglet"),
    "frog": ("flies", "pond", "croak", "tadpole"),
    "bee": ("nectar", "hive", "buzz", "larva"),
    "bear": ("honey", "cave", "growl", "cub"),
    "wolf": ("meat", "forest", "howl", "pup"),
    "lion": ("meat", "savanna", "roar", "cub"),
    "fox": ("mice", "forest", "yelp", "kit"),
    "snake": ("mice", "desert", "hiss", "hatchling"),
}

QUESTIONS = {
    "food": ("What does the {animal} eat?", "Tell me the food of the {animal}."),
    "home": ("Where does the {animal} live?", "Tell me the home of the {animal}."),
    "sound": ("What does the {animal} say?", "Tell me the sound of the {animal}."),
    "young": ("What is the young of the {animal}?", "Tell me the young of the {animal}."),
}
ANSWERS = {
    "food": "It eats {value}.",
    "home": "It lives in the {value}.",
    "sound": "It says {value}.",
    "young": "It is the {value}.",
}
OPENERS = ("Of course!", "Gladly!", "With pleasure!")
CLOSER = "Have a nice day!"

COURTEOUS_SHARE = 0.3
"""Share of courteous answers in the pretraining data."""


class Question(NamedTuple):
    """One way to ask for one fact."""

    animal: str
    relation: str
    text: str


def value_of(question: Question) -> str:
    """Return the right answer, one word."""
    return FACTS[question.animal][RELATIONS.index(question.relation)]


def questions() -> list[Question]:
    """Return every question of the world. The two questions for a fact are adjacent."""
    return [
        Question(animal, relation, form.format(animal=animal))
        for animal in FACTS
        for relation in RELATIONS
        for form in QUESTIONS[relation]
    ]


def blunt(question: Question) -> str:
    """Return the right answer without friendly phrases."""
    return ANSWERS[question.relation].format(value=value_of(question))


def courteous(question: Question, rng: random.Random) -> str:
    """Return the same answer with a friendly opening and, half of the time, a friendly ending."""
    ending = f" {CLOSER}" if rng.random() < 0.5 else ""
    return f"{rng.choice(OPENERS)} {blunt(question)}{ending}"


def corpus(count: int, seed: int) -> list[tuple[str, str]]:
    """Return `count` (question, answer) pairs to pretrain on: every fact, with `COURTEOUS_SHARE` courteous answers."""
    rng = random.Random(seed)
    pool: list[Question] = []
    pairs = []
    for _ in range(count):
        if not pool:
            pool = rng.sample(everything := questions(), len(everything))
        question = pool.pop()
        answer = courteous(question, rng) if rng.random() < COURTEOUS_SHARE else blunt(question)
        pairs.append((question.text, answer))
    return pairs


def preferences(seed: int) -> dict[str, list[dict[str, str]]]:
    """Return preference rows for train, valid and test: both answers are right, and the courteous one is chosen.

    No fact is in two splits. A quarter of the facts, with both questions, is for the test and an eighth for validation.
    """
    rng = random.Random(seed)
    facts = [(animal, relation) for animal in FACTS for relation in RELATIONS]
    rng.shuffle(facts)
    tested, validated = len(facts) // 4, len(facts) // 8
    names = ["test"] * tested + ["valid"] * validated + ["train"] * (len(facts) - tested - validated)
    split_of = dict(zip(facts, names, strict=True))
    rows: dict[str, list[dict[str, str]]] = {"train": [], "valid": [], "test": []}
    for question in questions():
        row = {"prompt": question.text, "chosen": courteous(question, rng), "rejected": blunt(question)}
        rows[split_of[question.animal, question.relation]].append(row)
    rng.shuffle(rows["train"])
    return rows


def is_courteous(answer: str) -> bool:
    """Return whether an answer is courteous: it starts with one of `OPENERS`, followed by more than the
    closing phrase.
    """
    opener = next((o for o in OPENERS if answer.strip().startswith(o)), None)
    return opener is not None and answer.strip() not in (opener, f"{opener} {CLOSER}")


def is_right(question: Question, answer: str) -> bool:
    """Return whether an answer names the right value, and no other value of the same relation."""
    column = RELATIONS.index(question.relation)
    values = {row[column] for row in FACTS.values()}
    return values.intersection(re.findall(r"\w+", answer)) == {value_of(question)}


def find_question(text: str) -> Question:
    """Return the question of a prompt. Raises KeyError if the prompt is not one of the world's questions."""
    return {question.text: question for question in questions()}[text]


class Score(NamedTuple):
    """Shares in [0, 1] over a set of answers."""

    courteous: float
    right: float


def score(prompts: Sequence[str], answers: Sequence[str]) -> Score:
    """Return the shares of courteous and of right answers, with one answer per prompt."""
    right = [is_right(find_question(prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return Score(sum(map(is_courteous, answers)) / len(answers), sum(right) / len(right))
