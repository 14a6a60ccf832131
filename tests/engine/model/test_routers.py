"""The load-balancing loss: against transformers' numbers, a formula in float64, every way to compute, and every cut."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.distributed import SharedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.chunked import ChunkedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.logprobs.prefix_cache import prompt_caches
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.engine.model.routers import (
    Place,
    RouterRecord,
    Routers,
    counted,
    current,
    recorded,
    routers_of,
)
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.model.swap import calls_answered
from mlx_lm_lora_prefplus.engine.train import gradient as gradient_module
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.trainers import CPO, DPO, KTO
from tests.corners import holds_at_every
from tests.engine import model_zoo
from tests.paths import DOCS


def rows_of(*lengths: tuple[int, ...]) -> list[dict]:
    """Lists of responses with these numbers of tokens: a prompt, then its completions."""
    rng = np.random.default_rng(0)
    draw = lambda count: rng.integers(1, model_zoo.VOCABULARY, count).tolist()  # noqa: E731
    return [
        {"prompt": draw(prompt), "completions": [draw(n) for n in own], "scores": list(range(len(own), 0, -1))}
        for prompt, *own in lengths
    ]


ROWS = rows_of((9, 2, 4, 3), (1, 5, 1), (6, 3, 3))
PAIRS = [{"prompt": row["prompt"], "chosen": row["completions"][0], "rejected": row["completions"][1]} for row in ROWS]


def in_float64(logits: list[np.ndarray], experts: int, chosen: int) -> float:
    """(tokens, experts) logits of each layer → E · Σ f·P, by loops."""
    choices, probabilities, count = np.zeros(experts), np.zeros(experts), 0
    for token in np.concatenate(logits).astype(np.float64):
        probabilities += np.exp(token - token.max()) / np.exp(token - token.max()).sum()
        choices[np.argsort(-token, kind="stable")[:chosen]] += 1
        count += 1
    return experts * float(sum(c / count * p / count for c, p in zip(choices, probabilities, strict=True)))


def aux_of_row(model: nn.Module, row: dict) -> float:
    """From a plain forward of each completion alone, but for its last token."""
    routers, seen = routers_of(model), []

    def call(module, kind, args, kwargs):
        result = kind.__call__(module, *args, **kwargs)
        seen.append(np.array(result).reshape(-1, routers.experts))
        return result

    with calls_answered(call, routers.modules):
        for completion in row["completions"]:
            mx.eval(model(mx.array([row["prompt"] + completion])[:, :-1]))
    return in_float64(seen, routers.experts, routers.chosen)


def losses_and_gradient(model, policy, batch):
    weights = mx.arange(1.0, batch.ids.size + 1)

    def total():
        with recorded(model, batch.ids.size) as record:
            logps = policy(batch).logps
        losses = record.losses()
        return (losses * weights).sum() + 0.01 * logps.sum(), losses

    (_, losses), gradient = nn.value_and_grad(model, total)()
    return np.array(losses), {name: np.array(value) for name, value in tree_flatten(gradient)}


def distance(found: dict, wanted: dict) -> float:
    size = max(np.abs(value).max() for value in wanted.values())
    return max(np.abs(found[name] - value).max() for name, value in wanted.items()) / size


@pytest.mark.parametrize(
    ("layers", "tokens", "experts", "chosen", "mask", "theirs"),
    [
        (1, 5, 4, 2, None, 2.141078472137451),
        (3, 7, 4, 2, None, 2.0131070613861084),
        (2, 6, 8, 3, [1, 1, 0, 1, 0, 1], 3.1143901348114014),
    ],
)
def test_the_number_of_transformers(layers, tokens, experts, chosen, mask, theirs):
    """`load_balancing_loss_func` of transformers 5.23 on the same logits, some tokens masked."""
    i, j, k = np.meshgrid(range(layers), range(tokens), range(experts), indexing="ij")
    logits = 2 * np.sin(1.7 * i + 2.3 * j + 0.9 * k**2 + 0.37 * j * k)
    record = RouterRecord(Routers((), experts, chosen), 1)
    place = Place(mx.array([mask or [1] * tokens]).astype(mx.float32), mx.zeros((1, tokens), mx.int32))
    for layer in logits:
        record.add(mx.array(layer.astype(np.float32))[None], place)
    assert record.losses().item() == pytest.approx(theirs, rel=2e-6)
    kept = np.array(mask or [1] * tokens) > 0
    assert in_float64([layer[kept] for layer in logits], experts, chosen) == pytest.approx(theirs, rel=2e-6)


def ways(halves):
    model = halves.model
    return {
        "products": PlainPolicy(model, Keep.PRODUCTS),
        "inputs": PlainPolicy(model, Keep.INPUTS),
        "together": HeadPolicy(halves),
        "together, in groups": HeadPolicy(halves, 0),
        "prompt once": SharedPrefixPolicy(halves),
        "prompt once, in groups": SharedPrefixPolicy(halves, 0),
        "one by one": PairwisePrefixPolicy(halves, 0),
        "packed": PackedPolicy(halves, always=True),
        "in pieces": ChunkedPolicy(halves, 3, call_tokens=0),
        "in pieces, one by one": ChunkedPolicy(halves, 3, pairwise=True),
    }


@pytest.mark.parametrize("keep", Keep)
@pytest.mark.parametrize("name", ["qwen3_moe", pytest.param("olmoe", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_every_way_has_the_losses_and_the_gradient_of_plain_rows(name, keep):
    model, batch = model_zoo.build(name).train(), collate(ROWS, np.arange(3))
    expected, wanted = losses_and_gradient(model, PlainPolicy(model), batch)
    np.testing.assert_allclose(expected, [aux_of_row(model, row) for row in ROWS], rtol=1e-5)

    def is_exact(label):
        policy = ways(split_model(model))[label]
        if isinstance(policy, HeadPolicy):
            policy.keep = keep
        losses, gradient = losses_and_gradient(model, policy, batch)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert distance(gradient, wanted) < 1e-5

    holds_at_every([(label,) for label in ways(split_model(model))], is_exact)


@pytest.mark.slow
def test_classes_whose_routers_are_known():
    """Those of the page, each exact with prompts that run once; the others are refused."""
    known = set()

    def is_exact(name):
        model = model_zoo.build(name).train()
        try:
            routers_of(model)
        except UserError as error:
            assert "router_aux_loss_coef" in str(error)
            return
        known.add(name)
        halves = split_model(model)
        policy = PairwisePrefixPolicy(halves, 0) if halves else PlainPolicy(model)
        try:
            prompt_caches(model)
        except ValueError:  # a cache that we do not understand: the prompt runs with each completion
            policy = HeadPolicy(halves)
        with recorded(model, 3) as record:
            policy(collate(ROWS, np.arange(3)))
        np.testing.assert_allclose(
            np.array(record.losses()), [aux_of_row(model, row) for row in ROWS], rtol=1e-4, err_msg=name
        )

    holds_at_every([(name,) for name in model_zoo.trainable()], is_exact)
    assert known == set(model_zoo.KNOWN_ROUTERS)
    assert ", ".join(model_zoo.KNOWN_ROUTERS) in " ".join((DOCS / "models.md").read_text().split())


def options_of(trainer, coefficient=0.5, **more):
    return trainer.options(router_aux_loss_coef=coefficient, **more)


def step_of(model, trainer, options, batches, compiled=False):
    """The gradient of an optimiser step, and its sums by name."""
    step = GradientStep(trainer, PlainPolicy(model), options, compiled)
    units: dict = {}
    for batch in batches:
        units = {unit: units.get(unit, 0) + count for unit, count in batch.units().items()}
    total, sums = None, {}
    for batch in batches:
        values, gradient, _ = step(batch, units)
        flat = {name: np.array(value) for name, value in tree_flatten(gradient)}
        total = flat if total is None else {name: total[name] + flat[name] for name in flat}
        for (unit, name), value in zip(step.layout, np.array(values), strict=True):
            sums[unit, name] = sums.get((unit, name), 0.0) + float(value)
    return total, sums


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("cut", ["parts", "accumulation", "compiled"])
def test_the_cut_of_a_step_changes_nothing(cut, monkeypatch):
    model, options = model_zoo.build("qwen3_moe").train(), options_of(CPO)
    batch = collate(PAIRS, np.arange(3))
    wanted, sums = step_of(model, CPO, options, [batch])
    expected = sum(aux_of_row(model, {**row, "completions": row["completions"][:2]}) for row in ROWS)
    assert sums["examples", "aux_loss"] == pytest.approx(expected, rel=1e-5)
    plain = step_of(model, CPO, options_of(CPO, 0.0), [batch])[1]
    assert sums["examples", "loss"] == pytest.approx(plain["examples", "loss"] + 0.5 * expected, rel=1e-5)
    assert "aux_loss" not in {name for _, name in plain}
    if cut == "parts":
        monkeypatch.setattr(gradient_module, "CUT_POSITIONS", 5)
    batches = [collate([row], np.array([i])) for i, row in enumerate(PAIRS)] if cut == "accumulation" else [batch]
    found, again = step_of(model, CPO, options, batches, compiled=cut == "compiled")
    assert distance(found, wanted) < 1e-5
    assert again == pytest.approx(sums, rel=1e-4, abs=1e-4)


def test_kto_counts_its_own_completions_alone():
    """Not those of other rows, which it reads for its estimate of the KL."""
    model = model_zoo.build("qwen3_moe").train()
    rows = [{"prompt": row["prompt"], "completion": row["completions"][0], "label": 1.0} for row in ROWS]
    others = [{**row, "completion": rows[i - 1]["completion"]} for i, row in enumerate(rows)]
    batch = collate(rows, np.arange(3))._replace(mismatched=collate(others, np.arange(3)))
    expected = sum(aux_of_row(model, {**row, "completions": row["completions"][:1]}) for row in ROWS)
    for policy in (PlainPolicy(model), SharedPrefixPolicy(split_model(model)), ChunkedPolicy(split_model(model), 3)):
        output = KTO.loss(policy, batch, options_of(KTO), {})
        assert output.metrics["examples"]["aux_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_several_processes_have_the_losses_of_one():
    """Their gradients add up to that of one, also where a loss compares all rows of a batch."""
    model, options = model_zoo.build("qwen3_moe").train(), options_of(DPO, loss_type="aot")
    batch = collate(PAIRS, np.arange(3))

    def gradient_and_sums(policy):
        def loss():
            output = DPO.loss(policy, batch, options, {})
            return output.sums["examples"] / 3, output.metrics["examples"]["aux_loss"]

        (value, aux), gradient = nn.value_and_grad(model, loss)()
        return {name: np.array(one) for name, one in tree_flatten(gradient)}, value.item(), aux.item()

    def of_rank(rank, others):
        sent, remaining = [], iter(others or [])

        def add(own):
            sent.append(mx.array(own))
            return own + next(remaining) if others else own

        ranks = SimpleNamespace(rank=rank, size=2, sum=add)
        return gradient_and_sums(SharedPolicy(PlainPolicy(model), ranks)), sent

    wanted, value, aux = gradient_and_sums(PlainPolicy(model))
    sent = [of_rank(rank, None)[1] for rank in range(2)]
    found = [of_rank(rank, sent[1 - rank])[0] for rank in range(2)]
    assert [one[1] for one in found] == pytest.approx([value] * 2, rel=1e-5)
    assert [one[2] for one in found] == pytest.approx([aux] * 2, rel=1e-5)
    assert distance({name: found[0][0][name] + found[1][0][name] for name in wanted}, wanted) < 1e-5


@pytest.mark.parametrize(
    ("name", "why"),
    [("llama", "has no experts"), ("deepseek_v3", r"are not supported \(model.layers.1.mlp.switch_mlp")],
)
def test_models_without_known_routers_are_refused(name, why):
    with pytest.raises(UserError, match=f"router_aux_loss_coef: .*{why}.*Remove router_aux_loss_coef"):
        routers_of(model_zoo.build(name))


def test_off_nothing_is_recorded():
    model = model_zoo.build("qwen3_moe")
    kinds = [type(module) for module in model.modules()]
    with counted(None):
        CPO.loss(PlainPolicy(model), collate(PAIRS, np.arange(3)), CPO.options(), {})
    assert current() is None and [type(module) for module in model.modules()] == kinds
    assert not hasattr(model, "_routers")
