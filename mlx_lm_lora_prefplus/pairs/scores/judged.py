"""Let a judge compare every two answers to a prompt, in both orders."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from ...evaluation.judges import Compare, function_judge, model_comparison
from ..prompts import Prompt
from ..sample import Answer


class Judgement(NamedTuple):
    """scores: for each answer the mean outcome of its comparisons, in [0, 1]. A comparison without a winner counts one
        half.
    undecided: pairs of answers that do not have the same winner in both orders, as positions (smaller first). compared:
        number of pairs of different answers.
    """

    scores: list[float]
    undecided: list[tuple[int, int]]
    compared: int


def load_judge(function: str | None, model: str | None) -> Compare:
    """Load the judge that `judge` or `judge_model` names. Raises UserError if that fails."""
    if function is not None:
        judge = function_judge(function, "judge")
        return lambda prompt, pairs: [judge(prompt, a, b) for a, b in pairs]
    assert model is not None
    return model_comparison(model, "judge_model")


def judge_all(compare: Compare, prompt: Prompt, answers: Sequence[Answer]) -> Judgement:
    """Compare every two answers in both orders. Only a win in both orders counts. Equal texts are a tie, and the judge
    is not asked.
    """
    texts = [answer.text for answer in answers]
    places = [(i, j) for i, j in itertools.combinations(range(len(texts)), 2) if texts[i] != texts[j]]
    first = compare(prompt.text, [(texts[i], texts[j]) for i, j in places])
    second = compare(prompt.text, [(texts[j], texts[i]) for i, j in places])
    wins = [[0.5] * len(texts) for _ in texts]
    undecided = []
    for (i, j), one, other in zip(places, first, second, strict=True):
        if (one - 0.5) * (other - 0.5) < 0:
            wins[i][j], wins[j][i] = float(one > 0.5), float(one < 0.5)
        else:
            undecided.append((i, j))
    others = max(1, len(texts) - 1)
    scores = [sum(row[:i] + row[i + 1 :]) / others for i, row in enumerate(wins)]
    return Judgement(scores, undecided, len(places))
