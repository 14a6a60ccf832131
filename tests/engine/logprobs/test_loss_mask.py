"""Completions with holes: tokens that do not count are in no sum, length or gradient, whatever computes them."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.data.batches.slicing import rows_of, slice_batch
from mlx_lm_lora_prefplus.engine.logprobs.chunked import ChunkedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.frozen_trunk import find_trunk, reference_logps_sharing_trunk
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy, at_least_float32
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.model.adapters import adapters_off
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.engine.reference.precompute import reference_logps
from mlx_lm_lora_prefplus.engine.train import gradient as steps
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.losses import compute, token_weights
from mlx_lm_lora_prefplus.settings import RunSettings
from mlx_lm_lora_prefplus.trainers import CPO, DPO, ORPO, SIMPO
from tests.conftest import iterate_batches, random_rows, tiny_llama, with_lora
from tests.engine import in_float64
from tests.engine.exactness import FLOAT64, error, float64
from tests.engine.logprobs.test_chunked import recurrent

WAYS = {
    "plain": lambda model: PlainPolicy(model),
    "together": lambda model: HeadPolicy(split_model(model)),
    "prefix": lambda model: SharedPrefixPolicy(split_model(model)),
    "prefix, one by one": lambda model: PairwisePrefixPolicy(split_model(model)),
    "together, in groups": lambda model: HeadPolicy(split_model(model), call_tokens=0),
    "prefix, in groups": lambda model: SharedPrefixPolicy(split_model(model), call_tokens=0),
    "packed": lambda model: PackedPolicy(split_model(model), always=True),
    "pieces": lambda model: ChunkedPolicy(split_model(model), 4),
    "pieces, one by one": lambda model: ChunkedPolicy(split_model(model), 3, True),
}


def with_holes(rows: list[dict], seed: int = 0) -> list[dict]:
    """The rows with random masks, each with at least one token that counts; a completion here and there has none."""
    rng = np.random.default_rng(seed)

    def mask(ids, whole: bool) -> list[int] | None:
        drawn = rng.integers(0, 2, len(ids))
        drawn[rng.integers(len(ids))] = 1
        return None if whole else drawn.tolist()

    sides = ("chosen", "rejected")
    return [
        row | {f"{side}_mask": mask(row[side], whole=(i + k) % 4 == 0) for k, side in enumerate(sides)}
        for i, row in enumerate(rows)
    ]


ROWS = with_holes(random_rows(5, seed=3, longest=14))


def masks(row: dict, side: str) -> list[int]:
    return row[f"{side}_mask"] or [1] * len(row[side])


def token_logps(model: nn.Module, row: dict, side: str) -> mx.array:
    """(tokens,) log-probs of a completion, by a forward of nothing but its prompt and itself."""
    tokens = mx.array([row["prompt"] + row[side]])
    logits = at_least_float32(model(tokens[:, :-1]))[0, len(row["prompt"]) - 1 :]
    return -nn.losses.cross_entropy(logits, mx.array(row[side]))


def sums_of_counted(model: nn.Module, rows: list[dict] = ROWS) -> mx.array:
    """(2·rows,) log-probs of the tokens that count, chosen then rejected."""
    return mx.stack(
        [
            (token_logps(model, row, side) * mx.array(masks(row, side))).sum()
            for side in ("chosen", "rejected")
            for row in rows
        ]
    )


def gradient(model: nn.Module, logps) -> dict[str, mx.array]:
    weights = mx.linspace(1.0, -1.5, 2 * len(ROWS))
    _, found = nn.value_and_grad(model, lambda: (logps() * weights).sum())()
    return dict(tree_flatten(found))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("training", "multiple"), [("lora", 8), ("full", 1)])
def test_sums_and_gradients_of_every_way(way, training, multiple, monkeypatch):
    in_float64.install(monkeypatch)
    model = float64(with_lora(tiny_llama()) if training == "lora" else tiny_llama(tied=False)).train()
    policy, batch = WAYS[way](model), collate(ROWS, np.arange(len(ROWS)), multiple)
    wanted = sums_of_counted(model)
    np.testing.assert_allclose(np.array(policy(batch).logps), np.array(wanted), rtol=FLOAT64)
    assert error(gradient(model, lambda: policy(batch).logps), gradient(model, lambda: sums_of_counted(model))) < 1e-9


def test_layers_that_keep_a_state():
    model = with_lora(recurrent()).train()
    wanted = sums_of_counted(model)
    for way in ("prefix, one by one", "pieces, one by one"):
        found = WAYS[way](model)(collate(ROWS, np.arange(len(ROWS)))).logps
        np.testing.assert_allclose(np.array(found), np.array(wanted), rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_statistics_are_means_over_what_counts(way):
    model = with_lora(tiny_llama())
    found = WAYS[way](model)(collate(ROWS, np.arange(len(ROWS))), statistics=True)
    for place, (side, row) in enumerate((side, row) for side in ("chosen", "rejected") for row in ROWS):
        tokens = mx.array([row["prompt"] + row[side]])
        logits = model(tokens[:, :-1])[0, len(row["prompt"]) - 1 :]
        logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        p, counted = mx.exp(logps), mx.array(masks(row, side))
        for given_, values in (
            (found.mean_logits, logits.mean(-1)),
            (found.entropy, -(p * logps).sum(-1)),
            (found.log_collision, mx.log((p * p).sum(-1))),
        ):
            wanted = (values * counted).sum() / counted.sum()
            np.testing.assert_allclose(given_[place].item(), wanted.item(), rtol=1e-4, atol=1e-5)


def test_the_head_is_not_computed_where_nothing_counts(monkeypatch):
    model, seen = with_lora(tiny_llama()), []
    policy = SharedPrefixPolicy(split_model(model))
    score = policy._score
    monkeypatch.setattr(policy, "_score", lambda states, *rest: (seen.append(states.shape[0]), score(states, *rest))[1])
    batch = collate(ROWS, np.arange(len(ROWS)))
    policy(batch)
    assert seen == [sum(sum(masks(row, side)) for row in ROWS for side in ("chosen", "rejected"))]
    assert seen[0] < (batch.lengths - batch.prompt_lengths).sum().item()


@settings(max_examples=20)
@given(seed=st.integers(0, 99), cut=st.integers(1, 4), multiple=st.sampled_from([1, 8]))
def test_parts_of_a_batch_hold_their_masks(seed, cut, multiple):
    rows = with_holes(random_rows(5, seed=seed), seed)
    batch = collate(rows, np.arange(5), multiple)
    for start, stop in ((0, cut), (cut, 5)):
        own, places = slice_batch(batch, start, stop), rows_of(batch, start, stop)
        assert np.array_equal(own.completion_lengths, batch.completion_lengths[places])
        alone = collate(rows[start:stop], np.arange(start, stop))
        assert np.array_equal(own.loss_mask, alone.loss_mask)
        assert np.array_equal(own.completion_mask, alone.completion_mask)
        assert np.array_equal(own.scored, alone.scored)


@settings(max_examples=10)
@given(seed=st.integers(0, 99), multiple=st.sampled_from([1, 8]), way=st.sampled_from(list(WAYS)))
def test_where_all_counts_a_mask_changes_no_bit(seed, multiple, way):
    rows = random_rows(3, seed=seed)
    sides = ("chosen", "rejected")
    whole = [row | {f"{side}_mask": [1] * len(row[side]) for side in sides} for row in rows]
    untold = [row | {f"{side}_mask": None for side in sides} for row in rows]
    policy = WAYS[way](with_lora(tiny_llama()))
    plain, *masked = (collate(given_, np.arange(3), multiple) for given_ in (rows, whole, untold))
    assert plain.loss_mask is None
    for batch in masked:
        for one, other in zip(policy(plain, statistics=True), policy(batch, statistics=True), strict=True):
            assert np.array_equal(one, other)


PAIRED = {
    "sigmoid": (DPO, {"loss_type": "sigmoid", "sft_weight": 0.3}),
    "means": (DPO, {"loss_type": ["ipo", "sigmoid_norm"]}),
    "wpo": (DPO, {"loss_type": "sigmoid", "use_weighting": True}),
    "ld": (DPO, {"loss_type": "sigmoid", "ld_alpha": 0.4}),
    "sampo": (DPO, {"loss_type": "sigmoid", "sampo": True}),
    "r_dpo": (DPO, {"loss_type": "sigmoid", "beta": 0.2}),
    "simpo": (SIMPO, {"loss_type": "simpo"}),
    "cpo": (CPO, {"loss_type": "sigmoid"}),
    "orpo": (ORPO, {"loss_type": "orpo"}),
}


def padded(values: list[mx.array], counted: list[list[int]]) -> tuple[mx.array, mx.array]:
    """(rows, width) values and masks, those that do not count taken out of the rows."""
    kept = [value[mx.array(np.flatnonzero(mask))] for value, mask in zip(values, counted, strict=True)]
    width = max(value.size for value in kept)
    mask = [[1] * value.size + [0] * (width - value.size) for value in kept]
    return mx.stack([mx.pad(value, (0, width - value.size)) for value in kept]), mx.array(mask, mx.bool_)


@pytest.mark.parametrize("name", PAIRED)
def test_the_loss_is_that_of_the_counted_tokens_alone(name):
    """`compute` is given nothing but the tokens that count, as if the others had never been there."""
    trainer, given_ = PAIRED[name]
    model = with_lora(tiny_llama()).train()
    options = trainer.options(**given_)
    batch = collate(ROWS, np.arange(len(ROWS)))
    policy = SharedPrefixPolicy(split_model(model))
    places = [(side, row) for side in ("chosen", "rejected") for row in ROWS]
    counted = [masks(row, side) for side, row in places]
    values, mask = padded([token_logps(model, row, side) for side, row in places], counted)
    more = {}
    if name == "wpo":
        logits = [
            model(mx.array([row["prompt"] + row[side][:-1]]))[0, len(row["prompt"]) - 1 :] for side, row in places
        ]
        collisions = [mx.log(mx.square(mx.softmax(value, axis=-1)).sum(-1)) for value in logits]
        more["token_log_collisions"] = padded(collisions, counted)[0]
    if trainer.needs_reference(options):
        with adapters_off(model):
            more["reference_token_logps"] = padded([token_logps(model, row, side) for side, row in places], counted)[0]
            weights = partial(trainer.token_weights, options=options)
            known = reference_logps(policy, [batch], len(ROWS), weights=weights)
        batch = batch._replace(reference_logps=mx.array(known.T.reshape(-1)))
    wanted = compute(trainer.mode, policy_token_logps=values, completion_mask=mask, **given_, **more)
    output, units = trainer.loss(policy, batch, options, {}), batch.units()
    assert units["chosen_tokens"] == sum(map(sum, counted[: len(ROWS)]))
    found = sum(value / units[unit] for unit, value in output.sums.items())
    np.testing.assert_allclose(found.item(), wanted.item(), rtol=1e-5)


@pytest.mark.parametrize("sampo", [True, False])
def test_weights_of_tokens_are_those_without_the_holes(sampo):
    options = DPO.options(sampo=True) if sampo else DPO.options(ld_alpha=0.4)
    batch = collate(ROWS, np.arange(len(ROWS)))
    found = DPO.token_weights(batch, options)
    lengths = batch.completion_lengths
    wanted = token_weights(options, lengths, int(lengths.max().item()), batch.ids)
    mask = np.array(batch.loss_mask)
    for row, (mine, its) in enumerate(zip(np.array(found), np.array(wanted), strict=True)):
        assert np.array_equal(mine[mask[row]], its[: lengths[row].item()])


@pytest.mark.usefixtures("compiling")
def test_steps_in_parts_compiled_and_over_the_trunk_agree(monkeypatch):
    model = with_lora(tiny_llama(layers=2), layers=1).train()
    policy, options = SharedPrefixPolicy(split_model(model)), DPO.options(loss_type="ipo", beta=0.3)
    batch = collate(ROWS, np.arange(len(ROWS)), 4)
    with adapters_off(model):
        known = reference_logps(policy, [batch], len(ROWS))
        wanted = sums_of_counted(model)
    np.testing.assert_allclose(known.T.reshape(-1), np.array(wanted), rtol=1e-5)
    trunk = find_trunk(model, policy.halves.head_names)
    assert trunk is not None
    beside, over = reference_logps_sharing_trunk(policy, trunk, batch, None, adapters_off(model))
    assert np.array_equal(np.array(beside), known.T.reshape(-1))
    assert np.array_equal(over(batch).logps, policy(batch).logps)
    batch = batch._replace(reference_logps=beside)
    found = {}
    for name, compiled, positions in (("whole", False, 10**6), ("parts", False, 20), ("compiled", True, 10**6)):
        monkeypatch.setattr(steps, "CUT_POSITIONS", positions)
        values, grads, _ = GradientStep(DPO, policy, options, compiled)(batch, batch.units())
        found[name] = {"values": values, **dict(tree_flatten(grads))}
    for name in ("parts", "compiled"):
        assert error(found[name], found["whole"]) < 1e-4, name


def test_unpaired_rows_bring_the_mask_of_the_other_completion():
    rng = np.random.default_rng(0)
    rows = []
    for row in random_rows(6, seed=5):
        mask = rng.integers(0, 2, len(row["chosen"]))
        mask[0] = 1
        rows.append(
            {"prompt": row["prompt"], "completion": row["chosen"], "label": 1.0, "completion_mask": mask.tolist()}
        )
    longest = max(len(row["prompt"]) + len(row["completion"]) for row in rows)
    for batch in iterate_batches(rows, batch_size=4, mismatched=True):
        for one in (batch, batch.mismatched):
            for place, number in enumerate(batch.ids.tolist()):
                own = rows[number]
                length = (one.lengths[place] - one.prompt_lengths[place]).item()
                tokens = one.completions[place, :length].tolist()
                (source,) = [row for row in rows if row["completion"][:length] == tokens]
                assert (source is own) == (one is batch) and len(own["prompt"]) + length <= longest
                mask = one.loss_mask[place].tolist()
                assert mask[:length] == [bool(counts) for counts in source["completion_mask"][:length]]
                assert not any(mask[length:])


def test_lists_with_holes():
    rows = [
        {
            "prompt": [1],
            "completions": [[2, 3], [4, 5, 6]],
            "scores": [2.0, 1.0],
            "completion_masks": [[0, 1], [1, 0, 1]],
        },
        {"prompt": [7], "completions": [[8], [9, 9], [3]], "scores": [3.0, 2.0, 1.0]},
    ]
    rows = [row | {"completion_masks": own} for row, own in zip(rows, ([[0, 1], [1, 0, 1]], None), strict=True)]
    (batch,) = iterate_batches(rows, batch_size=2, shuffle=False)
    assert batch.completion_lengths.tolist() == [1, 1, 2, 2, 0, 1]
    assert batch.scored.tolist() == [1, 3, 6, 8, 9, 10, 15]


def test_the_probe_takes_a_row_with_holes():
    model = with_lora(tiny_llama()).train()
    example = collate(ROWS[1:2], np.arange(1))
    choice = choose_policy(model, RunSettings(), example)
    assert type(choice.policy) is SharedPrefixPolicy, choice.description
