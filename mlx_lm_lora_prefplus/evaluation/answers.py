"""Answers of the policy and of its reference to the same prompts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm import batch_generate
from mlx_lm.sample_utils import make_sampler

from ..data.batches.lengths import lengths_of
from ..engine.model.adapters import adapter_layers, adapters_off
from ..host import models
from ..host.run.session import Session


class Answer(NamedTuple):
    """text, and tokens: its ids, with the end-of-sequence token where the model gave one."""

    text: str
    tokens: list[int]


class Asked(NamedTuple):
    """One prompt, as text and token ids, and the two answers to it."""

    prompt: str
    tokens: list[int]
    policy: Answer
    reference: Answer


def ask(session: Session, count: int, max_tokens: int, temperature: float) -> list[Asked]:
    """Let both models answer the first `count` different prompts of the held-out rows.

    max_tokens: of an answer. temperature: 0 takes the likeliest token. Both models begin with the same seed.
    """
    prompts = _prompts(session, count)
    ours = _answers(session, session.model, prompts, max_tokens, temperature)
    with reference_model(session) as model:
        theirs = _answers(session, model, prompts, max_tokens, temperature)
    texts = (session.tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts)
    return [Asked(*one) for one in zip(texts, prompts, ours, theirs, strict=True)]


def _prompts(session: Session, count: int) -> list[list[int]]:
    """The first different ones, as token ids."""
    rows, found = session.rows["test"], dict[tuple[int, ...], None]()
    for place in range(len(lengths_of(rows).prompt)):
        found.setdefault(tuple(np.asarray(rows[place]["prompt"]).tolist()))
        if len(found) == count:
            break
    return [list(prompt) for prompt in found]


def _answers(
    session: Session, model: nn.Module, prompts: list[list[int]], max_tokens: int, temperature: float
) -> list[Answer]:
    tokenizer, seed = session.tokenizer, session.resolved.settings.seed
    mx.random.seed(seed)
    model.eval()
    made = batch_generate(
        model,
        tokenizer,
        prompts,
        max_tokens=max_tokens,
        sampler=make_sampler(temp=temperature),
        return_token_ids=True,
    )
    assert made.token_ids is not None
    ends = [[tokenizer.eos_token_id] if len(ids) < max_tokens else [] for ids in made.token_ids]
    return [Answer(text, [*ids, *end]) for text, ids, end in zip(made.texts, made.token_ids, ends, strict=True)]


@contextmanager
def reference_model(session: Session) -> Iterator[nn.Module]:
    """The model to compare with: what `reference_model_path` names in modes with a reference, else the base model."""
    resolved = session.resolved
    if resolved.settings.reference_model_path and resolved.trainer.needs_reference(resolved.options):
        yield models.load_reference(resolved.settings, session.tokenizer)
    elif adapter_layers(session.model):
        with adapters_off(session.model):
            yield session.model
    else:  # all weights were trained
        yield models.load_base(resolved.settings)[0]
