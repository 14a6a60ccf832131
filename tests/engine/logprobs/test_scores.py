"""Every way gives all of `Scores` as rows run one by one do, in float64: for any number of completions of a prompt,
empty ones among them, with weights of tokens and with statistics."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.data.batches.slicing import rows_of, slice_batch
from mlx_lm_lora_prefplus.engine.logprobs.chunked import ChunkedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.plugin import Batch
from tests.conftest import VOCABULARY, tiny_llama, with_lora
from tests.engine import in_float64
from tests.engine.exactness import FLOAT64, error, float64

WAYS = {
    "plain": lambda model: PlainPolicy(model),
    "head": lambda model: HeadPolicy(split_model(model)),
    "prompt once": lambda model: SharedPrefixPolicy(split_model(model)),
    "one by one": lambda model: PairwisePrefixPolicy(split_model(model)),
    "head, in groups": lambda model: HeadPolicy(split_model(model), call_tokens=0),
    "prompt once, in groups": lambda model: SharedPrefixPolicy(split_model(model), call_tokens=1),
    "one by one, in groups": lambda model: PairwisePrefixPolicy(split_model(model), call_tokens=0),
    "packed": lambda model: PackedPolicy(split_model(model), always=True),
    "pieces": lambda model: ChunkedPolicy(split_model(model), 3),
    "pieces, in groups": lambda model: ChunkedPolicy(split_model(model), 3, call_tokens=0),
    "pieces, one by one": lambda model: ChunkedPolicy(split_model(model), 3, pairwise=True),
}
SHAPES = {
    "one completion": [(5, [4]), (1, [7]), (9, [1])],
    "pairs": [(5, [4, 2]), (1, [7, 3]), (9, [1, 8])],
    "three, some empty": [(5, [4, 0, 2]), (1, [7, 3, 0]), (9, [1, 0, 0])],
}
"""Tokens of each prompt and of its completions."""

EXPONENTIALS = 1e-6
"""mlx's exp is not more exact than this, in float64 either; only the same exponentials have the same error."""


def batch_of(shape: list[tuple[int, list[int]]]) -> Batch:
    rng = np.random.default_rng(len(shape[0][1]))
    draw = lambda count: rng.integers(1, VOCABULARY, count)  # noqa: E731
    prompts = [draw(length) for length, _ in shape]
    count = len(shape[0][1])
    completions = [draw(lengths[k]) for k in range(count) for _, lengths in shape]
    prompt_lengths = np.array([len(prompt) for prompt in prompts] * count)
    lengths = np.array([len(completion) for completion in completions])
    padded = _padded(completions)
    return Batch(
        tokens=mx.array(_padded([np.concatenate(both) for both in zip(prompts * count, completions, strict=True)])),
        prompts=mx.array(_padded(prompts)),
        completions=mx.array(padded),
        scored=mx.array(np.flatnonzero(np.arange(padded.shape[1]) < lengths[:, None]).astype(np.int32)),
        prompt_lengths=mx.array(prompt_lengths.astype(np.int32)),
        lengths=mx.array((prompt_lengths + lengths).astype(np.int32)),
        reference_logps=mx.zeros(len(completions)),
        ids=mx.arange(len(shape)),
        columns={"margin": mx.arange(len(shape)), "score": 0.5 * mx.arange(len(completions))},
    )


def _padded(sequences: list[np.ndarray]) -> np.ndarray:
    width = max(map(len, sequences))
    return np.array([np.pad(sequence, (0, width - len(sequence))) for sequence in sequences], np.int32)


def weights_of(batch: Batch) -> mx.array:
    """Some of them zero or negative, and none of them zero where there is padding."""
    return mx.array(np.random.default_rng(0).integers(-2, 4, batch.completions.shape) + 0.25 * (batch.completions == 0))


def alone(model: nn.Module, batch: Batch, weights: mx.array, row: int) -> list[mx.array]:
    """The five scores of one row by a forward of its own, from their definitions."""
    prompt, length = batch.prompt_lengths[row].item(), batch.lengths[row].item()
    if prompt == length:
        return [mx.array(0.0, mx.float64)] * 5
    tokens = batch.tokens[row : row + 1, :length]
    logits = model(tokens[:, :-1])[0, prompt - 1 :]
    logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    picked = mx.take_along_axis(logps, tokens[0, prompt:, None], axis=-1)[:, 0]
    probabilities = mx.exp(logps)
    return [
        picked.sum(),
        logits.mean(),
        (picked * weights[row, : length - prompt]).sum(),
        -(probabilities * logps).sum(axis=-1).mean(),
        mx.log((probabilities**2).sum(axis=-1)).mean(),
    ]


def gradient(model: nn.Module, two_logps) -> dict[str, mx.array]:
    """Of log-probs and weighted log-probs, each row with two numbers of its own."""

    def loss() -> mx.array:
        logps, weighted = two_logps()
        rows = logps.size
        return (logps * mx.linspace(1, -2, rows)).sum() + (weighted * mx.linspace(-1, 0.5, rows)).sum()

    return dict(tree_flatten(nn.value_and_grad(model, loss)()[1]))


@pytest.fixture(params=["lora", "full, tied"])
def model(request, monkeypatch) -> nn.Module:
    """The head is frozen in one, trained in the other."""
    in_float64.install(monkeypatch)
    return float64(with_lora(tiny_llama()) if request.param == "lora" else tiny_llama()).train()


@pytest.mark.parametrize(
    "shape", [*(pytest.param(shape, marks=pytest.mark.slow) for shape in list(SHAPES)[:2]), "three, some empty"]
)
@pytest.mark.parametrize("way", WAYS)
def test_scores_are_those_of_single_rows(way, shape, model):
    batch = batch_of(SHAPES[shape])
    rows, weights, policy = batch.lengths.size, weights_of(batch), WAYS[way](model)
    single = partial(alone, model, batch, weights)

    for mode in (model.train, model.eval):
        mode()
        given = policy(batch, weights, statistics=True)
        assert given.mismatched_logps is None
        columns = zip(*map(single, range(rows)), strict=True)
        for name, values, wanted in zip(given._fields[:5], given[:5], columns, strict=True):
            limit = EXPONENTIALS if name in ("entropy", "log_collision") else FLOAT64
            np.testing.assert_allclose(np.array(values), np.array(mx.stack(wanted)), rtol=limit, err_msg=name)

    model.train()
    ours = gradient(model, lambda: policy(batch, weights, statistics=True)[0:3:2])
    wanted = gradient(model, lambda: [mx.stack(c) for c in zip(*(single(i)[0:3:2] for i in range(rows)), strict=True)])
    assert error(ours, wanted) <= FLOAT64


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_asked_for(way, model):
    batch = batch_of(SHAPES["pairs"])
    scores = WAYS[way](model)(batch)
    assert scores.entropy is None and scores.log_collision is None
    assert mx.array_equal(scores.weighted_logps, scores.logps)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_statistics_and_weights_have_no_gradient(way, model):
    """Weights may be computed from the policy itself, as confidences are."""
    batch, policy = batch_of(SHAPES["pairs"]), WAYS[way](model)

    def statistics() -> mx.array:
        scores = policy(batch, statistics=True)
        return (scores.mean_logits + scores.entropy + scores.log_collision).sum()

    assert all((value == 0).all() for _, value in tree_flatten(nn.value_and_grad(model, statistics)()[1]))

    def weighted(held: bool) -> mx.array:
        weights = policy(batch).logps[:, None] * mx.ones(batch.completions.shape)
        return policy(batch, mx.stop_gradient(weights) if held else weights).weighted_logps.sum()

    free, held = (dict(tree_flatten(nn.value_and_grad(model, partial(weighted, held))()[1])) for held in (False, True))
    assert error(free, held) <= FLOAT64


@pytest.mark.parametrize("shape", SHAPES)
def test_a_part_is_the_batch_of_its_examples(shape):
    whole = batch_of(SHAPES[shape])
    some = slice_batch(whole, 1, 3)
    assert some.ids.tolist() == [1, 2] and some.columns["margin"].tolist() == [1, 2]
    rows = rows_of(whole, 1, 3)
    assert mx.array_equal(some.columns["score"], 0.5 * rows)
    lengths, prompts = SHAPES[shape][1:], [length for length, _ in SHAPES[shape][1:]]
    assert some.prompts.shape == (2, max(prompts))
    assert some.completions.shape[1] == max(max(completions) for _, completions in lengths)
    assert some.tokens.shape[1] == max(prompt + max(completions) for prompt, completions in lengths)
    model = with_lora(tiny_llama()).train()
    policy, weights = HeadPolicy(split_model(model)), weights_of(whole)
    of_part = policy(some, weights[rows, : some.completions.shape[1]], statistics=True)
    for one, other in zip(of_part[:5], policy(whole, weights, statistics=True)[:5], strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other[rows]), rtol=1e-5, atol=1e-6)
