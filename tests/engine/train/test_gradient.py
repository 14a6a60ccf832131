"""Gradients: exact over any cut into micro-batches, the same compiled, and not zero."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.data.batches.plan import COMPILED_MULTIPLE
from mlx_lm_lora_prefplus.data.batches.slicing import slice_batch
from mlx_lm_lora_prefplus.engine.distributed import SharedPolicy
from mlx_lm_lora_prefplus.engine.log.metric_sums import MetricSums
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.train import gradient as gradient_module
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep, cuts
from mlx_lm_lora_prefplus.plugin import LossOutput
from mlx_lm_lora_prefplus.trainers import BCO, CPO, DPO, ORPO, SIMPO
from tests.conftest import random_rows, tiny_llama, with_lora

ROWS = random_rows(7, seed=2)
LOSSES = ("sigmoid", "hinge", "ipo", "dpop")
OPTIONS = [(CPO, CPO.options(loss_type=name, cpo_alpha=0.7)) for name in LOSSES]
OPTIONS += [(DPO, DPO.options(loss_type=name, sft_weight=0.3)) for name in LOSSES]
IDS = [f"{trainer.mode}-{options.loss_type}" for trainer, options in OPTIONS]


def batch_of(start: int, stop: int, multiple: int = 1):
    batch = collate(ROWS[start:stop], np.arange(start, stop), multiple)
    fixed = np.random.default_rng(0).normal(-20, 2, (len(ROWS), 2)).astype(np.float32)[start:stop]
    return batch._replace(reference_logps=mx.array(fixed.T.reshape(-1)))


def whole_step(trainer, options, cuts, compiled=False, multiple=1, fitting=None, way=PlainPolicy):
    """Loss and gradient of all rows, cut into micro-batches at `cuts`."""
    step = GradientStep(trainer, way(with_lora(tiny_llama())), options, compiled, fitting=fitting)
    batches = [batch_of(a, b, multiple) for a, b in pairwise([0, *sorted(set(cuts)), len(ROWS)])]
    units = {unit: sum(batch.units()[unit] for batch in batches) for unit in batches[0].units()}
    totals, gradient = MetricSums(), None
    for batch in batches:
        values, new, _ = step(batch, units)
        totals.add(batch.units(), step.layout, values.tolist())
        gradient = new if gradient is None else tree_map(mx.add, gradient, new)
    return totals.means(), dict(tree_flatten(gradient))


def assert_same(one, other, tolerance=1e-5):
    for name in one[0]:
        assert one[0][name] == pytest.approx(other[0][name], rel=tolerance, abs=1e-6), name
    for name, value in one[1].items():
        error = mx.linalg.norm(value - other[1][name]).item()
        assert error <= tolerance * (mx.linalg.norm(other[1][name]).item() + 1e-6), name


@pytest.mark.parametrize(("trainer", "options"), OPTIONS, ids=IDS)
def test_any_cut_gives_the_same_step(trainer, options):
    assert_same(whole_step(trainer, options, [1, 2, 5]), whole_step(trainer, options, []))


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, len(ROWS) - 1), max_size=5))
@pytest.mark.slow
def test_any_cut_at_all(cuts):
    trainer, options = OPTIONS[0]
    assert_same(whole_step(trainer, options, cuts), whole_step(trainer, options, []))


def counting(monkeypatch) -> list[int]:
    """The examples of each batch that reaches the policy."""
    seen: list[int] = []
    call = PlainPolicy.__call__

    def counted(self, batch, weights=None, *, statistics=False):
        seen.append(batch.ids.shape[0])
        return call(self, batch, weights, statistics=statistics)

    monkeypatch.setattr(PlainPolicy, "__call__", counted)
    return seen


def in_parts(monkeypatch, positions: int = 30) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    monkeypatch.setattr("mlx_lm_lora_prefplus.engine.train.gradient.CUT_POSITIONS", positions)


@pytest.mark.parametrize(("trainer", "options"), OPTIONS, ids=IDS)
def test_parts_on_a_cpu_give_the_same_step(trainer, options, monkeypatch):
    whole = whole_step(trainer, options, [3])
    in_parts(monkeypatch)
    seen = counting(monkeypatch)
    assert_same(whole_step(trainer, options, [3]), whole)
    assert sum(seen) == len(ROWS) and len(seen) > 3, "they are more than the two micro-batches"


RANKED = [
    {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"], row["chosen"][:3]][: 2 + i % 2]}
    for i, row in enumerate(ROWS)
]
IN_GROUPS = {
    "cpo": (CPO, CPO.options(cpo_alpha=0.7), ROWS),
    "simpo": (SIMPO, SIMPO.options(), ROWS),
    "orpo": (ORPO, ORPO.options(), ROWS),
    "dpo, weighted tokens": (DPO, DPO.options(ld_alpha=0.4), ROWS),
    "dpo, all rows together": (DPO, DPO.options(loss_type="aot"), ROWS),
    "lists": (
        DPO,
        DPO.options(loss_type="plackett_luce"),
        [{**row, "scores": [3.0, 2.0, 1.0][: len(row["completions"])]} for row in RANKED],
    ),
    "bco": (
        BCO,
        BCO.options(),
        [{"prompt": r["prompt"], "completion": r["chosen"], "label": float(i % 2)} for i, r in enumerate(ROWS)],
    ),
}


@pytest.mark.parametrize("way", [HeadPolicy, SharedPrefixPolicy, PairwisePrefixPolicy])
@pytest.mark.parametrize("name", IN_GROUPS)
def test_groups_of_rows_give_the_same_step(name, way):
    trainer, options, rows = IN_GROUPS[name]
    batch = collate(rows, np.arange(len(rows)))
    batch = batch._replace(reference_logps=mx.where(batch.completion_lengths > 0, -20.0, 0.0))
    halves = split_model(with_lora(tiny_llama()))
    assert halves is not None
    results = []
    for policy in (PlainPolicy(halves.model), way(halves, call_tokens=2)):
        step = GradientStep(trainer, policy, options, compiled=False)
        values, gradient, _ = step(batch, batch.units(), trainer.initial_state(options))
        losses = {unit: v for (unit, kind), v in zip(step.layout, values.tolist(), strict=True) if kind == "loss"}
        results.append((losses, dict(tree_flatten(gradient))))
    assert_same(*results)


def test_parts_hold_what_fits():
    """Positions of an example: its prompt and its completions. The third is larger than a part may be."""
    rows = [{"prompt": [1] * p, "chosen": [1] * c, "rejected": [1]} for p, c in ((300, 200), (400, 100), (900, 300))]
    batch = collate([*rows, rows[0]], np.arange(4))
    assert cuts(batch, 1024) == [(0, 2), (2, 3), (3, 4)]
    assert cuts(collate(rows[:1], np.arange(1)), 1024) == [(0, 1)]


class Coupled(type(CPO)):
    """As CPO, but it does not say that its loss is separable."""

    def separable(self, options):
        return False


def test_what_is_not_cut(monkeypatch):
    in_parts(monkeypatch)
    seen = counting(monkeypatch)
    for trainer, options, compiled in (
        (Coupled(**vars(CPO)), CPO.options(), False),
        (DPO, DPO.options(loss_type="aot"), False),
        (CPO, CPO.options(), True),
    ):
        seen.clear()
        whole_step(trainer, options, [], compiled)
        assert seen == [len(ROWS)]


class Running:
    """A trainer whose loss is the distance of the log-probs from their running mean."""

    def initial_state(self, options):
        return {"mean": mx.array(0.0)}

    def loss(self, policy, batch, options, state):
        logps = policy(batch).logps
        mean = 0.5 * state["mean"] + 0.5 * mx.stop_gradient(logps.mean())
        loss = mx.square(logps - state["mean"]).sum()
        return LossOutput({"examples": loss}, {"examples": {"mean": mean}}, {"mean": mean})

    def separable(self, options):
        return True


@pytest.mark.parametrize("compiled", [False, True])
def test_a_state_is_handed_on_and_not_cut(compiled, monkeypatch):
    """Two equal batches: the second is held against the mean that the first has left."""
    in_parts(monkeypatch)
    policy = PlainPolicy(with_lora(tiny_llama()))
    step = GradientStep(Running(), policy, None, compiled)
    batch = batch_of(0, 4)
    logps = np.array(policy(batch).logps)
    state, mean, gradients = {"mean": mx.array(-10.0)}, -10.0, []
    for _ in range(2):
        values, gradient, state = step(batch, {"examples": 1}, state)
        mx.eval(values, gradient, state)
        gradients.append(gradient)
        assert values[0].item() == pytest.approx(np.square(logps - mean).sum(), rel=1e-4)
        mean = 0.5 * mean + 0.5 * logps.mean()
        assert state["mean"].item() == pytest.approx(mean, rel=1e-5)
    first, second = (dict(tree_flatten(gradient)) for gradient in gradients)
    assert any(not mx.allclose(value, second[name]) for name, value in first.items())


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(("trainer", "options"), OPTIONS, ids=IDS)
def test_compiled_is_the_same(trainer, options):
    """Also a guard against mlx 0.32.4, where equal outputs of a compiled function fail."""
    assert_same(whole_step(trainer, options, [3], compiled=True), whole_step(trainer, options, [3]))


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(("trainer", "options"), [OPTIONS[0], OPTIONS[4]], ids=[IDS[0], IDS[4]])
def test_a_compiled_step_in_parts_that_fit_is_the_same(trainer, options, monkeypatch):
    """Each of the 7 examples counts with the padding of its batch: 3 · 32 tokens."""
    whole = whole_step(trainer, options, [])
    sizes = []
    monkeypatch.setattr(
        gradient_module, "slice_batch", lambda batch, *ends: sizes.append(ends[:2]) or slice_batch(batch, *ends)
    )
    found = whole_step(trainer, options, [], compiled=True, multiple=COMPILED_MULTIPLE, fitting=3 * 96 + 95)
    assert_same(found, whole)
    assert sizes == [(0, 3), (3, 6), (6, 7)]


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("keep", Keep)
def test_a_compiled_step_of_packed_rows_is_the_same(keep):
    """Each of its model calls has one row for each pair."""
    shapes = []

    def packed(model):
        halves = split_model(model)
        hidden = halves.hidden
        halves.hidden = lambda tokens, *given: shapes.append(tokens.shape) or hidden(tokens, *given)
        policy = PackedPolicy(halves)
        policy.keep = keep
        return policy

    found = whole_step(*OPTIONS[0], [4], compiled=True, multiple=COMPILED_MULTIPLE, way=packed)
    assert_same(found, whole_step(*OPTIONS[0], [4]))
    assert [rows for rows, _ in shapes] == [4, 3]


class Asking(type(CPO)):
    """Its loss asks the policy about other tokens too."""

    def loss(self, policy, batch, options, state):
        output = super().loss(policy, batch, options, state)
        others = {name: mx.where(getattr(batch, name) > 0, 7, 0) for name in ("tokens", "prompts", "completions")}
        output.sums["examples"] = output.sums["examples"] + policy(batch._replace(**others)).logps.sum()
        return output


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_packed_rows_are_those_of_the_tokens_that_a_loss_asks_about(compiled, request):
    if compiled:
        request.getfixturevalue("compiling")
    asking = object.__new__(Asking)
    vars(asking).update(vars(CPO))
    packed = whole_step(
        asking, CPO.options(), [], True, COMPILED_MULTIPLE, way=lambda model: PackedPolicy(split_model(model))
    )
    assert_same(packed, whole_step(asking, CPO.options(), []))


def test_parts_of_packed_rows_hold_what_fits():
    """Long prompts with short completions, and short prompts with long ones: all rows have 96 tokens."""
    rows = [{"prompt": [1] * a, "chosen": [2] * b, "rejected": [3] * b} for a, b in [(90, 4), (8, 45)] * 3]
    batch = collate(rows, np.arange(6), COMPILED_MULTIPLE)
    assert cuts(batch, 300, COMPILED_MULTIPLE, packed=True) == [(0, 3), (3, 6)]
    assert len(cuts(batch, 300, COMPILED_MULTIPLE)) == 6, "padded to 96 + 2 · 64"


def test_a_part_of_a_compiled_step_has_the_shapes_of_a_batch():
    """So that few graphs are compiled."""
    part, own = slice_batch(batch_of(0, 7, 32), 2, 5, 32), batch_of(2, 5, 32)
    for name in ("tokens", "prompts", "completions", "scored", "lengths", "prompt_lengths", "ids"):
        assert np.array_equal(np.array(getattr(part, name)), np.array(getattr(own, name))), name


@pytest.mark.parametrize(("trainer", "options"), OPTIONS, ids=IDS)
def test_no_gradient_is_zero(trainer, options):
    _, gradient = whole_step(trainer, options, [])
    assert all(mx.abs(value).max().item() > 0 for value in gradient.values())


def test_losses_differ():
    losses = [whole_step(trainer, options, [])[0]["loss"] for trainer, options in OPTIONS]
    assert len({round(loss, 4) for loss in losses}) == len(losses)


def test_nll_is_the_token_mean_of_the_step():
    """α·NLL comes on top of the preference loss, averaged over all chosen tokens."""
    plain, _ = whole_step(CPO, CPO.options(), [2])
    weighted, _ = whole_step(CPO, CPO.options(cpo_alpha=0.7), [2])
    chosen = sum(len(row["chosen"]) for row in ROWS)
    assert plain["nll_loss"] == pytest.approx(-plain["logps/chosen"] * len(ROWS) / chosen, rel=1e-5)
    assert weighted["loss"] - plain["loss"] == pytest.approx(0.7 * plain["nll_loss"], rel=1e-4)


def test_accuracy_counts_pairs():
    means, _ = whole_step(CPO, CPO.options(), [])
    scores = PlainPolicy(with_lora(tiny_llama()))(batch_of(0, len(ROWS))).logps
    won = (scores[: len(ROWS)] > scores[len(ROWS) :]).sum().item()
    assert means["rewards/accuracies"] == pytest.approx(won / len(ROWS))


def test_reference_free_ignores_the_reference():
    assert not DPO.needs_reference(DPO.options(reference_free=True))
    assert DPO.needs_reference(DPO.options())
    assert not CPO.needs_reference(CPO.options())


@pytest.mark.parametrize(("state", "alone"), [({}, True), ({"mean": mx.array(0.0)}, False)])
def test_what_carries_a_state_sees_the_whole_batch_on_several_processes(state, alone):
    """Each process would add the gradient of all rows, or a running mean would be that of a share."""

    class Carrying(Running):
        def initial_state(self, options):
            return state

    class Two:
        rank, size = 0, 2

    policy = SharedPolicy(PlainPolicy(with_lora(tiny_llama())), Two())
    step = GradientStep(Carrying(), policy, None, compiled=False)
    assert (step.ranks is not None) is alone
