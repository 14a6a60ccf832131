"""Answers of the policy and its reference to the same prompts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import batch_generate
from mlx_lm.sample_utils import make_sampler

from ..engine.model.adapters import adapter_layers, adapters_off
from ..errors import UserError
from ..host import models, trained
from ..host.callbacks.samples import first_prompts
from ..host.run.session import Session


class Answer(NamedTuple):
    """text: the answer. Its token ids include the end-of-sequence token if the model generated one."""

    text: str
    tokens: list[int]


class AnsweredPrompt(NamedTuple):
    """One prompt, as text and token ids, with the answers of the policy and the reference."""

    prompt: str
    tokens: list[int]
    policy: Answer
    reference: Answer


def answer_prompts(session: Session, count: int, max_tokens: int, temperature: float) -> list[AnsweredPrompt]:
    """Let policy and reference answer the first `count` distinct prompts of the held-out rows, with the same seed.

    max_tokens: largest length of an answer (tokens). temperature: 0 always chooses the most probable token.
    """
    prompts = _prompts(session, count)
    ours = _answers(session, session.model, prompts, max_tokens, temperature)
    with reference_model(session) as model:
        theirs = _answers(session, model, prompts, max_tokens, temperature)
    texts = (session.tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts)
    return [AnsweredPrompt(*fields) for fields in zip(texts, prompts, ours, theirs, strict=True)]


def _prompts(session: Session, count: int) -> list[list[int]]:
    """Return the first `count` distinct prompts as token ids. Raises UserError for rows with pictures."""
    if "pictures" in session.rows["test"].column_names:
        raise UserError(
            "--judge: answers to rows with pictures are not generated. Leave out --judge and --judge-model: the "
            "rewards on the held-out rows are computed with their pictures."
        )
    return first_prompts(session.rows["test"], count)


def _answers(
    session: Session, model: nn.Module, prompts: list[list[int]], max_tokens: int, temperature: float
) -> list[Answer]:
    tokenizer, seed = session.tokenizer, session.resolved.settings.seed
    mx.random.seed(seed)
    model.eval()
    responses = batch_generate(
        model,
        tokenizer,
        prompts,
        max_tokens=max_tokens,
        sampler=make_sampler(temp=temperature),
        return_token_ids=True,
    )
    assert responses.token_ids is not None
    ends = [[tokenizer.eos_token_id] if len(ids) < max_tokens else [] for ids in responses.token_ids]
    return [
        Answer(text, [*ids, *end]) for text, ids, end in zip(responses.texts, responses.token_ids, ends, strict=True)
    ]


@contextmanager
def reference_model(session: Session) -> Iterator[nn.Module]:
    """Load the model to compare with. With a reference it is `reference_model_path`, otherwise the base model."""
    resolved = session.resolved
    if resolved.settings.reference_model_path and resolved.needs_reference:
        yield trained.load_reference(resolved.settings, session.tokenizer)
    elif adapter_layers(session.model):
        with adapters_off(session.model):
            yield session.model
    else:  # full fine-tuning: all weights were trained
        yield models.load_base(resolved.settings)[0]
