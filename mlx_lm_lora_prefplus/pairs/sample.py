"""Sample answers of the policy in batches with mlx-lm's generator. Each answer has its own random stream."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import apply_top_p

from .prompts import Prompt
from .settings import PairSettings

PREFILL = 2048
"""Tokens of a prompt that are processed at once."""


class Answer(NamedTuple):
    """text: without special tokens. tokens: number of tokens, without the end of sequence. finished: whether the model
    ended the answer.
    """

    text: str
    tokens: int
    finished: bool


def chunk_size(settings: PairSettings) -> int:
    """Return the number of prompts that are answered together: enough to keep the generator's batch mostly full.

    The batches in which a prompt is answered depend only on this number. A command that continues after it was killed
    therefore computes the same bytes.
    """
    return max(1, 2 * settings.generation_batch_size // settings.answers)


def sample(model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], settings: PairSettings) -> list[list[Answer]]:
    """Sample the answers to a chunk of prompts: `settings.answers` for each prompt, beginning with those of the first
    seed.

    A prompt is processed once, and its answers share its key-value cache. The random numbers of an answer depend only
    on its seed, its prompt and its position. The last bits of the logits depend on which rows share a batch, as
    everywhere in MLX, so an answer may differ if it is sampled among other prompts.
    """
    model.eval()
    generator = BatchGenerator(
        model,
        max_tokens=settings.max_tokens,
        stop_tokens=[[token] for token in tokenizer.eos_token_ids],
        completion_batch_size=settings.generation_batch_size,
        prefill_batch_size=min(8, settings.generation_batch_size),
    )
    draws = list(itertools.product(settings.seeds, range(settings.num_generations)))
    caches = [_read(model, prompt.tokens) for prompt in prompts]
    try:
        uids = generator.insert(
            [prompt.tokens[-1:] for prompt in prompts for _ in draws],
            caches=[cache for cache in caches for _ in draws],
            samplers=[
                seeded_sampler(settings, f"{seed} {place} {prompt.key}") for prompt in prompts for seed, place in draws
            ],
        )
        del caches
        tokens: dict[int, list[int]] = {uid: [] for uid in uids}
        finished = set()
        while responses := generator.next_generated():
            for response in responses:
                if response.finish_reason == "stop":
                    finished.add(response.uid)
                else:
                    tokens[response.uid].append(response.token)
    finally:
        generator.close()
    texts = (tokenizer.decode(tokens[uid], skip_special_tokens=True) for uid in uids)
    answers = [Answer(text, len(tokens[uid]), uid in finished) for uid, text in zip(uids, texts, strict=True)]
    return [answers[start : start + len(draws)] for start in range(0, len(answers), len(draws))]


def _read(model: nn.Module, tokens: list[int]) -> list[Any]:
    """Return the key-value cache of all prompt tokens but the last. The generator copies it into its batches."""
    cache = make_prompt_cache(model)
    for start in range(0, len(tokens) - 1, PREFILL):
        model(mx.array([tokens[start : min(start + PREFILL, len(tokens) - 1)]]), cache=cache)
        mx.eval([layer.state for layer in cache])
    return cache


def seeded_sampler(settings: PairSettings, stream: str) -> Callable[[mx.array], mx.array]:
    """Return a sampler for one answer: (1, vocabulary) log-probs → (1,) token. stream: a name that determines the
    random numbers.
    """
    start = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big")
    steps = itertools.count(start)

    def sampler(logprobs: mx.array) -> mx.array:
        if settings.top_p < 1:
            logprobs = apply_top_p(logprobs, settings.top_p)
        return mx.random.categorical(logprobs / settings.temperature, key=mx.random.key(next(steps) % 2**64))

    return sampler
