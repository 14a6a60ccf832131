"""Answers depend on their seed, their prompt and their place, and not on what else is in the batch."""

import mlx.core as mx
import pytest
from mlx_lm import load

from mlx_lm_lora_prefplus.data.formats.example import Example
from mlx_lm_lora_prefplus.pairs.prompts import Prompt
from mlx_lm_lora_prefplus.pairs.sample import sample, seeded_sampler
from mlx_lm_lora_prefplus.pairs.settings import PairSettings


@pytest.fixture(scope="module")
def policy(model_folder):
    return load(str(model_folder))[:2]


def prompt(*tokens: int) -> Prompt:
    return Prompt("train", Example(1, " ".join(map(str, tokens)), [], []), [0, *tokens], {})


PROMPTS = [prompt(7, 8, 9), prompt(10), prompt(11, 12, 13, 14, 15), prompt(16, 17)]


def settings(**changes) -> PairSettings:
    return PairSettings(**{"num_generations": 2, "max_tokens": 8, "reward": ["json"], **changes})


def test_a_prompt_alone_gets_the_answers_that_it_gets_among_others(policy):
    together = sample(*policy, PROMPTS, settings())
    assert [sample(*policy, [one], settings())[0] for one in PROMPTS] == together
    assert sample(*policy, PROMPTS[::-1], settings(generation_batch_size=3)) == together[::-1]


def test_answers_differ_and_more_answers_keep_the_first(policy):
    few, many = (sample(*policy, PROMPTS, settings(num_generations=n)) for n in (2, 4))
    assert [some[:2] for some in many] == few
    assert all(len({answer.text for answer in some}) == 4 for some in many)


def test_several_seeds(policy):
    one, other = (sample(*policy, PROMPTS, settings(seeds=seed)) for seed in (1, 2))
    both = sample(*policy, PROMPTS, settings(seeds=[1, 2]))
    assert both == [[*first, *second] for first, second in zip(one, other, strict=True)]
    assert one != other


def test_answers_end_where_the_model_ends_them(policy):
    model, tokenizer = policy
    (found,) = sample(model, tokenizer, PROMPTS[:1], settings(num_generations=40, max_tokens=30, temperature=5.0))
    assert {answer.finished for answer in found} == {True, False}
    for answer in found:
        assert (answer.tokens < 30) == answer.finished and "</s>" not in answer.text


def test_the_sampler_draws_by_the_probabilities():
    logprobs = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    draws = [seeded_sampler(settings(temperature=1.0), str(i))(logprobs).item() for i in range(400)]
    shares = [draws.count(token) / 400 for token in range(4)]
    assert shares == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.08)
    top = [seeded_sampler(settings(temperature=1.0, top_p=0.7), str(i))(logprobs).item() for i in range(60)]
    assert set(top) == {0, 1}
