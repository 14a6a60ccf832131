"""Every mode and every loss of ours learns: the parameters move, the loss falls, no two losses are one by accident."""

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.reference.precompute import reference_logps, with_reference
from mlx_lm_lora_prefplus.engine.reference.store import ReferenceStore
from mlx_lm_lora_prefplus.losses import loss_names
from mlx_lm_lora_prefplus.plugin.protocol import Trainer
from mlx_lm_lora_prefplus.trainers import BCO, CPO, DPO, KTO, ORPO, SIMPO
from tests.conftest import VOCABULARY, iterate_batches, tiny_llama, with_lora

TRAINERS = (CPO, DPO, SIMPO, ORPO, KTO, BCO)
EVERY_LOSS = [(trainer, name) for trainer in TRAINERS for name in trainer.losses]
SAME = {frozenset({"apo_zero", "kto_pair"})}
"""Losses that are one function under two names."""


def rows_for(trainer, options, count=8, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda low, high: rng.integers(low, high, rng.integers(2, 9)).tolist()  # noqa: E731
    good, bad = (VOCABULARY // 2, VOCABULARY), (1, VOCABULARY // 2)
    kind = trainer.rows_of(options)
    if kind == "unpaired":
        return [
            {"prompt": draw(1, 60), "completion": draw(*(bad if i % 2 else good)), "label": float(i % 2 == 0)}
            for i in range(count)
        ]
    if kind == "ranked":
        each = [[draw(*good), draw(1, 60), draw(*bad)][: 3 - i % 2] for i in range(count)]
        return [{"prompt": draw(1, 60), "completions": own, "scores": [3.0, 2.0, 1.0][: len(own)]} for own in each]
    numbers = {"margin": 0.5, "chosen_score": 9.0, "rejected_score": 4.0, "preference_prob": 0.9}
    return [{"prompt": draw(1, 60), "chosen": draw(*good), "rejected": draw(*bad), **numbers} for _ in range(count)]


def options_for(trainer: Trainer, name: str, **more):
    given = {"chi_po_clip": 10.0} if name == "chi_po" else {}
    return trainer.options(loss_type=name, **given, **more)


class Run:
    """A small run of one loss, micro-batch by micro-batch."""

    def __init__(self, trainer, options, batch_size=4, rows=None):
        self.trainer, self.options = trainer, options
        self.model = with_lora(tiny_llama(), moved=False)
        self.policy = PlainPolicy(self.model)
        self.rows = rows or rows_for(trainer, options)
        mismatched = trainer.needs_mismatched(options)
        self.batches = list(iterate_batches(self.rows, batch_size=batch_size, shuffle=False, mismatched=mismatched))
        if trainer.needs_reference(options):
            weigh = lambda batch: trainer.token_weights(batch, options)  # noqa: E731
            store = _reference(self.policy, self.batches, len(self.rows), weigh)
            self.batches = list(with_reference(self.batches, store))
        self.state = trainer.initial_state(options)
        self.model.train()

    def move(self, size=0.05):
        """Take the policy away from its reference."""
        for key, module in self.model.named_modules():
            if "lora_b" in module:
                module.lora_b = size * mx.random.normal(module.lora_b.shape, key=mx.random.key(len(key)))

    def output(self, batch):
        return self.trainer.loss(self.policy, batch, self.options, state=self.state)

    def gradient(self, batch):
        def loss():
            output = self.output(batch)
            units = batch.units()
            return sum(value / units[unit] for unit, value in output.sums.items()), output.state

        (value, self.state), gradient = nn.value_and_grad(self.model, loss)()
        return float(value), gradient

    def mean_loss(self):
        """Over all batches, as an evaluation has it."""
        return self.trainer.evaluate(self.policy, iter(self.batches), self.options, self.state)["loss"]


def _reference(policy, batches, rows, weigh):
    store = ReferenceStore(
        None, rows, completions=max(batch.all_reference_logps.size // batch.ids.size for batch in batches)
    )
    reference_logps(policy, batches, rows, store=store, weights=weigh)
    return store


def norm(gradient) -> float:
    return math.sqrt(sum(float(mx.square(value).sum()) for _, value in tree_flatten(gradient)))


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "name"), EVERY_LOSS, ids=[f"{t.mode}-{n}" for t, n in EVERY_LOSS])
def test_every_loss_moves_the_parameters_and_falls(trainer, name):
    run = Run(trainer, options_for(trainer, name))
    before = run.mean_loss()
    optimizer, norms = optim.Adam(learning_rate=2e-3), list[float]()
    start = {key: np.array(value) for key, value in tree_flatten(run.model.trainable_parameters())}
    for step in range(12):
        value, gradient = run.gradient(run.batches[step % len(run.batches)])
        assert math.isfinite(value)
        norms.append(norm(gradient))
        optimizer.update(run.model, gradient)
        mx.eval(run.model.parameters(), optimizer.state, run.state)
    assert max(norms) > 0, "no gradient: the loss does not reach the parameters"
    moved = sum(np.abs(np.array(v) - start[k]).sum() for k, v in tree_flatten(run.model.trainable_parameters()))
    assert moved > 0
    assert run.mean_loss() < before


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.mode)
def test_losses_of_a_mode_differ_from_one_another(trainer):
    """Where the policy has left its reference: at the start some of them agree."""
    seen: dict[str, float] = {}
    for name in trainer.losses:
        if trainer.losses[name].function is None:
            continue
        run = Run(trainer, options_for(trainer, name, beta=0.3))
        run.move(1.0)
        seen[name] = float(sum(v / run.batches[0].units()[u] for u, v in run.output(run.batches[0]).sums.items()))
    for first, value in seen.items():
        for second, other in seen.items():
            if first < second and frozenset({first, second}) not in SAME:
                assert value != pytest.approx(other, rel=1e-4), f"{first} and {second} are one"


def test_several_losses_are_their_weighted_sum_and_parts_are_told():
    parts = {}
    for name in ("sigmoid", "bco_pair"):
        run = Run(DPO, DPO.options(loss_type=name))
        parts[name] = float(run.output(run.batches[0]).sums["examples"])
    mpo = DPO.options(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    run = Run(DPO, mpo)
    output = run.output(run.batches[0])
    assert float(output.sums["examples"]) == pytest.approx(0.8 * parts["sigmoid"] + 0.2 * parts["bco_pair"], rel=1e-5)
    assert float(output.sums["chosen_tokens"]) == pytest.approx(float(output.metrics["chosen_tokens"]["nll_loss"]))
    assert float(output.metrics["examples"]["losses/sigmoid"]) == pytest.approx(parts["sigmoid"], rel=1e-5)
    assert "losses/sft" not in output.metrics["examples"]


@pytest.mark.parametrize(
    "modifier",
    [
        {"ld_alpha": 0.3},
        {"sampo": True},
        {"use_weighting": True},
        {"dr_dpo_beta": 1.0},
        {"f_divergence_type": "js_divergence"},
        {"sft_weight": 0.5},
        {"sft_weight": 0.5, "sft_normalization": "sequence"},
        {"reference_free": True},
        {"label_smoothing": 0.2},
    ],
    ids=lambda modifier: "-".join(modifier),
)
def test_every_modifier_changes_the_gradient_and_learns(modifier):
    plain, changed = Run(DPO, DPO.options()), Run(DPO, DPO.options(**modifier))
    plain.move(), changed.move()
    (_, first), (value, second) = plain.gradient(plain.batches[0]), changed.gradient(changed.batches[0])
    assert math.isfinite(value) and norm(second) > 0
    difference = math.sqrt(
        sum(
            float(mx.square(a - b).sum())
            for (_, a), (_, b) in zip(tree_flatten(first), tree_flatten(second), strict=True)
        )
    )
    assert difference > 1e-3 * norm(first)


@pytest.mark.parametrize(
    "options",
    [
        DPO.options(loss_type="ipo"),
        DPO.options(ld_alpha=0.3, sft_weight=0.5),
        DPO.options(sampo=True),
        DPO.options(use_weighting=True),
        DPO.options(loss_type="plackett_luce"),
        CPO.options(loss_type="simpo", cpo_alpha=1.0),
        ORPO.options(),
        KTO.options(loss_type="apo_zero_unpaired"),
    ],
    ids=lambda options: f"{type(options).__name__}-{options.loss_type}",
)
def test_a_separable_loss_is_the_same_however_the_step_is_cut(options):
    trainer = next(trainer for trainer in TRAINERS if type(options) is trainer.options)
    assert trainer.separable(options)
    rows = rows_for(trainer, options)
    whole, cut = Run(trainer, options, batch_size=8, rows=rows), Run(trainer, options, batch_size=3, rows=rows)
    units: dict[str, int] = {}
    for batch in cut.batches:
        for unit, count in batch.units().items():
            units[unit] = units.get(unit, 0) + count
    assert units == whole.batches[0].units()
    total = lambda run: sum(  # noqa: E731
        float(value) / units[unit] for batch in run.batches for unit, value in run.output(batch).sums.items()
    )
    assert total(cut) == pytest.approx(total(whole), rel=1e-5)


def test_what_looks_at_other_rows_is_not_separable():
    assert DPO.separable(DPO.options())
    assert not DPO.separable(DPO.options(loss_type="aot"))
    assert not DPO.separable(DPO.options(dr_dpo_beta=1.0))
    assert not DPO.separable(DPO.options(loss_type=["sigmoid", "bco_pair"]))
    assert not KTO.separable(KTO.options())
    assert not BCO.separable(BCO.options())


def test_the_running_mean_takes_the_batch_in_before_it_is_used_and_rests_in_evaluation():
    run = Run(BCO, BCO.options(beta=0.5))
    run.move()
    output = run.output(run.batches[0])
    rewards = output.metrics["desirable"]["rewards/chosen"] + output.metrics["undesirable"]["rewards/rejected"]
    assert float(output.state["reward_count"]) == 4
    assert float(output.state["reward_mean"]) == pytest.approx(float(rewards) / 4, rel=1e-5)
    run.state = output.state
    run.model.eval()
    assert float(run.output(run.batches[1]).state["reward_count"]) == 4


def test_metrics_of_unpaired_rows_are_by_class():
    rows = rows_for(KTO, KTO.options())
    run = Run(KTO, KTO.options(), batch_size=8, rows=rows)
    means = KTO.evaluate(run.policy, iter(run.batches), run.options, {})
    assert means["rewards/margins"] == pytest.approx(means["rewards/chosen"] - means["rewards/rejected"], abs=1e-6)
    assert means["kl"] == pytest.approx(0, abs=1e-5), "the policy is its reference"
    assert {"logps/chosen", "logps/rejected", "logits/chosen", "entropy", "rewards/accuracies"} <= set(means)


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.mode)
def test_training_and_evaluation_report_the_same_metrics(trainer):
    run = Run(trainer, trainer.options())
    trained = {name for group in run.output(run.batches[0]).metrics.values() for name in group}
    evaluated = set(trainer.evaluate(run.policy, iter(run.batches), run.options, run.state)) - {"loss"}
    assert trained == evaluated >= {"entropy", "rewards/chosen", "logps/rejected", "logits/chosen"}


def test_the_defaults_belong_to_the_loss_and_what_is_given_wins():
    assert DPO.options().beta == 0.1
    assert DPO.options(loss_type="sppo_hard").beta == 0.001
    assert DPO.options(loss_type="sppo_hard", beta=0.2).beta == 0.2
    assert (CPO.options(loss_type="slic").delta, CPO.options(loss_type="dpop").delta) == (1.0, 50.0)
    assert SIMPO.options().simpo_gamma == 1.0 and SIMPO.options().beta == 2.0
    assert SIMPO.options(gamma_beta_ratio=0.3, beta=5.0).simpo_gamma == 1.5
    with pytest.raises(ValueError, match="simpo_gamma and gamma_beta_ratio"):
        SIMPO.options(gamma_beta_ratio=0.3, simpo_gamma=1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_type": "nca_pair", "f_divergence_type": "forward_kl"}, "cannot be combined with loss_type nca_pair"),
        ({"loss_type": "exo_pair", "label_smoothing": 0.0}, "exo_pair takes its logarithm"),
        ({"loss_type": ["sigmoid", "plackett_luce"]}, "cannot be combined"),
        ({"loss_type": "aot", "use_weighting": True}, "compares sorted pairs"),
        ({"loss_type": "chi_po"}, "chi_po needs it"),
        (
            {"loss_type": "plackett_luce", "ld_alpha": 0.0, "use_weighting": True},
            "Remove ld_alpha and use_weighting",
        ),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "must have one weight for each loss"),
        ({"loss_type": ["sigmoid", "sigmoid"]}, "names a loss twice"),
        ({"loss_type": []}, "the list is empty"),
        ({"ld_alpha": 0.5, "sampo": True}, "Give one of them"),
        ({"sync_ref_model": True, "reference_free": True}, "needs a reference"),
        ({"bema_for_ref_model": True, "reference_free": True}, "bema_for_ref_model needs a reference"),
        ({"bema_for_ref_model": True, "sync_ref_model": True}, "both update the reference"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_that_cannot_stand_together(given, message):
    with pytest.raises(ValueError, match=message):
        DPO.options(**given)


@pytest.mark.parametrize("trainer", [KTO, ORPO], ids=lambda one: one.mode)
def test_each_loss_once_in_every_mode(trainer):
    name = trainer.options().loss_type
    with pytest.raises(ValueError, match="names a loss twice"):
        trainer.options(loss_type=[name, name])
    with pytest.raises(ValueError, match="the list is empty"):
        trainer.options(loss_type=[])


def test_loss_names():
    assert loss_names("sigmoid") == ["sigmoid"]
    assert loss_names("sigmoid, sft") == loss_names(["sigmoid", "sft"]) == ["sigmoid", "sft"]
