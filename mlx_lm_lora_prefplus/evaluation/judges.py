"""Judges that decide which of two answers is better: a user's function, a local model, or the policy's own reward."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..data.batches.collate import collate
from ..engine.probe.select import choose_policy
from ..errors import UserError
from ..host.run.session import Session
from ..losses import outcome, pair_rounding
from ..trainers.tabled import reward_rounding
from .answers import AnsweredPrompt, reference_model
from .functions import load_function
from .questions import Choice

Judge = Callable[[str, str, str], float]
"""Function (prompt, answer A, answer B) → 1 if A is better, 0 if B is better, 0.5 if neither is; or any value in [0,
1].
"""

Compare = Callable[[str, Sequence[tuple[str, str]]], list[float]]
"""Function (prompt, pairs of answers) → a value in [0, 1] for each pair: 1 if the first answer is better, 0 if the
second is better.
"""

QUESTION = """\
Here are a request and two answers to it. Decide which answer is better: more helpful, correct and to the point. \
A longer answer is not better for being longer.

[Request]
{prompt}

[Answer A]
{a}

[Answer B]
{b}

Which answer is better, A or B? Reply with one letter."""


def function_judge(name: str, key: str = "--judge") -> Judge:
    """Load the function `module:function` or `file.py:function`. The module may be in the working directory. key: the
    flag or config key that named it, for messages.

    Raises:
        UserError: There is no such function.
    """
    callback = load_function(name, key)

    def judge(prompt: str, a: str, b: str) -> float:
        result: Any = callback(prompt, a, b)
        try:
            value = float(result)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value <= 1:
            raise UserError(
                f"{key} {name} returned {result!r}. Return 1 if the first answer is better, 0 if the second is, 0.5 "
                "if neither."
            )
        return value

    return judge


def model_judge(path: str) -> Judge:
    """Load a local model as a judge. The judge asks the model which answer is better, A or B. The more probable letter
    wins.

    Raises:
        UserError: The model cannot be loaded, or its tokens do not distinguish A from B.
    """
    compare = model_comparison(path)
    return lambda prompt, a, b: compare(prompt, [(a, b)])[0]


def model_comparison(path: str, key: str = "--judge-model") -> Compare:
    """Load a local model that judges several pairs of answers at once; see `model_judge` and `function_judge`."""
    choice = Choice(path, key, (("A",), ("B",)))

    def compare(prompt: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        differences = choice([QUESTION.format(prompt=prompt, a=a, b=b) for a, b in pairs])
        return [0.5 if difference == 0 else float(difference > 0) for difference in differences]

    return compare


def judge_answers(judge: Judge, answered: list[AnsweredPrompt]) -> tuple[np.ndarray, float]:
    """Judge each pair of answers in both orders, and average. A preference for the first position then cancels out.

    Returns:
        Two values. (prompts,): 1 where the policy's answer is better, 0 where it is worse. The share of prompts with
        the same judgement in both orders.
    """
    first = np.array([_compare(judge, prompt.prompt, prompt.policy.text, prompt.reference.text) for prompt in answered])
    second = np.array(
        [1 - _compare(judge, prompt.prompt, prompt.reference.text, prompt.policy.text) for prompt in answered]
    )
    return (first + second) / 2, float((first == second).mean())


def _compare(judge: Judge, prompt: str, a: str, b: str) -> float:
    return 0.5 if a == b else judge(prompt, a, b)


def judge_by_reward(session: Session, answered: list[AnsweredPrompt]) -> np.ndarray:
    """Judge by the reward that training optimises: (prompts,), 1 where the policy's answer has more reward, 0 where
    less.
    """
    resolved = session.resolved
    trainer: Any = resolved.trainer
    wins = []
    with reference_model(session) as model:
        scorer = choose_policy(model, resolved.settings).policy if model is not session.model else session.engine.policy
        references = [_logps(scorer, session, prompt) if resolved.needs_reference else None for prompt in answered]
    for prompt, reference in zip(answered, references, strict=True):
        batch = _pair(prompt)
        if reference is not None:
            batch = batch._replace(reference_logps=reference)
        scores = session.engine.policy(batch, session.token_weights(batch))
        ours, theirs = trainer.rewards(scores, batch, resolved.options)
        rounding = pair_rounding(*reward_rounding(trainer, session.model, scores, batch, resolved.options))
        is_same = prompt.policy.tokens == prompt.reference.tokens
        wins.append(0.5 if is_same else outcome(ours - theirs, rounding).item())
    return np.array(wins)


def _pair(one: AnsweredPrompt) -> Any:
    """Make a batch of one row. Its two completions are the answers of the policy and the reference."""
    row = {"prompt": one.tokens, "chosen": one.policy.tokens, "rejected": one.reference.tokens}
    return collate([row], np.zeros(1, np.int64))


def _logps(policy: Any, session: Session, one: AnsweredPrompt) -> mx.array:
    batch = _pair(one)
    logps = policy(batch, session.token_weights(batch)).weighted_logps.astype(mx.float32)
    mx.eval(logps)
    return logps
