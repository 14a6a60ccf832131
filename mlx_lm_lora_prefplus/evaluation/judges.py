"""Who decides which of two answers is better: a function of the user's, a local model, or the policy's own reward."""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load

from ..data.batches.collate import collate
from ..engine.logprobs.select import choose_policy
from ..errors import UserError
from ..host.run.session import Session
from ..losses import outcome, pair_rounding
from ..trainers.tabled import reward_rounding
from .answers import Asked, reference_model

Judge = Callable[[str, str, str], float]
"""Prompt, answer A, answer B → 1 if A is better, 0 if B is, 0.5 if neither; anything between counts as it stands."""

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


def function_judge(name: str) -> Judge:
    """The function that `module:function` names; modules in the folder one is in are found.

    Raises:
        UserError: there is none.
    """
    module, _, function = name.partition(":")
    if not (module and function):
        raise UserError(
            f"--judge {name}: write module:function, or reward. A file my_judge.py is named my_judge:better."
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--judge {name}: {error}. Start in the folder that holds {module}.py.") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise UserError(f"--judge {name}: {function} is no function.")

    def judge(prompt: str, a: str, b: str) -> float:
        said: Any = found(prompt, a, b)
        try:
            value = float(said)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value <= 1:
            raise UserError(
                f"--judge {name} returned {said!r}. Return 1 if the first answer is better, 0 if the second is, 0.5 if "
                "neither."
            )
        return value

    return judge


def model_judge(path: str) -> Judge:
    """A local model that is asked for one letter; which of the two is likelier is its verdict.

    Raises:
        UserError: it cannot be loaded, or its tokens do not tell A from B.
    """
    try:
        model, tokenizer = load(path)[:2]
    except Exception as error:  # loading ends in whatever the hub, the tokenizer or mlx raises
        raise UserError(f"--judge-model: {path} could not be loaded: {type(error).__name__}: {error}") from error
    letters = [_letter(tokenizer, letter) for letter in "AB"]
    if letters[0] & letters[1]:
        raise UserError(f"--judge-model: the tokenizer of {path} has no token of its own for A and for B.")

    def judge(prompt: str, a: str, b: str) -> float:
        asked = QUESTION.format(prompt=prompt, a=a, b=b)
        logits = model(mx.array([_question_tokens(tokenizer, asked)]))[0, -1].astype(mx.float32)
        first, second = (float(mx.logsumexp(logits[mx.array(sorted(ids))])) for ids in letters)
        return 0.5 if first == second else float(first > second)

    return judge


def _question_tokens(tokenizer: Any, text: str) -> list[int]:
    if tokenizer.has_chat_template:
        messages = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False)
    return tokenizer.encode(f"{text}\n\nAnswer:")


def _letter(tokenizer: Any, letter: str) -> set[int]:
    """The token a reply with this letter begins with: with and without a space before it."""
    return {tokenizer.encode(text, add_special_tokens=False)[-1] for text in (letter, f" {letter}")}


def judged(judge: Judge, asked: list[Asked]) -> tuple[np.ndarray, float]:
    """Each pair is judged in both orders and averaged, so that a liking for the first place cancels out.

    Returns:
        (prompts,) 1 where the policy's answer is better; the share of prompts judged alike in both orders.
    """
    first = np.array([_of_two(judge, one.prompt, one.policy.text, one.reference.text) for one in asked])
    second = np.array([1 - _of_two(judge, one.prompt, one.reference.text, one.policy.text) for one in asked])
    return (first + second) / 2, float((first == second).mean())


def _of_two(judge: Judge, prompt: str, a: str, b: str) -> float:
    return 0.5 if a == b else judge(prompt, a, b)


def judged_by_reward(session: Session, asked: list[Asked]) -> np.ndarray:
    """(prompts,) 1 where the policy's own reward, of which the training thinks, is higher for the policy's answer."""
    resolved = session.resolved
    trainer: Any = resolved.trainer
    found = []
    with reference_model(session) as model:
        its_policy = (
            choose_policy(model, resolved.settings).policy if model is not session.model else session.engine.policy
        )
        compared = trainer.needs_reference(resolved.options)
        references = [_logps(its_policy, session, one) if compared else None for one in asked]
    for one, reference in zip(asked, references, strict=True):
        batch = _pair(one)
        if reference is not None:
            batch = batch._replace(reference_logps=reference)
        scores = session.engine.policy(batch, session.token_weights(batch))
        ours, theirs = trainer.rewards(scores, batch, resolved.options)
        off = pair_rounding(*reward_rounding(trainer, session.model, scores, batch, resolved.options))
        same = one.policy.tokens == one.reference.tokens
        found.append(0.5 if same else outcome(ours - theirs, off).item())
    return np.array(found)


def _pair(one: Asked) -> Any:
    """Both answers as the completions of one row."""
    row = {"prompt": one.tokens, "chosen": one.policy.tokens, "rejected": one.reference.tokens}
    return collate([row], np.zeros(1, np.int64))


def _logps(policy: Any, session: Session, one: Asked) -> mx.array:
    batch = _pair(one)
    logps = policy(batch, session.token_weights(batch)).weighted_logps.astype(mx.float32)
    mx.eval(logps)
    return logps
