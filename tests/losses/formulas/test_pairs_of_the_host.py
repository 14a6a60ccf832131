"""The losses that the host has too: the same values and gradients."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm_lora.trainer import cpo_trainer, dpo_trainer, orpo_trainer

from mlx_lm_lora_prefplus.losses.formulas import pairs, policy_only
from mlx_lm_lora_prefplus.losses.inputs import Pairs
from tests.losses.formulas.pair_inputs import FREE, B, S, X, same


def masks(x: Pairs):
    return [mx.arange(9)[None] <= n[:, None] for n in (x.chosen_tokens, x.rejected_tokens)]


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "dpop"])
@pytest.mark.parametrize("mode", ["dpo", "cpo"])
def test_value_and_gradient_equal_the_host(mode, name):
    """The host's function returns the mean over pairs."""
    x = X if mode == "dpo" else FREE
    scored = x.means() if name == "ipo" else x
    function = pairs.dpop_policy if (mode, name) == ("cpo", "dpop") else getattr(pairs, name)
    options = {"dpop": {**B, "delta": 50.0}, "sigmoid": S}.get(name, B)
    chosen_masks, rejected_masks = masks(x)

    def host(chosen, rejected):
        given = {
            "policy_chosen_score": chosen,
            "policy_rejected_score": rejected,
            "chosen_masks": chosen_masks,
            "rejected_masks": rejected_masks,
            "beta": 0.1,
            "delta": 50.0,
            "loss_type": name,
        }
        if mode == "cpo":
            return cpo_trainer.cpo_loss(**given)[0]
        reference = (scored.reference_chosen, scored.reference_rejected)
        names = ("reference_chosen_score", "reference_rejected_score")
        return dpo_trainer.dpo_loss(**given, **dict(zip(names, reference, strict=True)))[0]

    def ours(chosen, rejected):
        return function(scored._replace(chosen=chosen, rejected=rejected), **options).mean()

    same_value_and_gradient(ours, host, scored)


@pytest.mark.parametrize("scored", [False, True], ids=["plain", "preference_score"])
def test_orpo_equals_the_host(scored):
    """The host's loss has the NLL −p̄_w in it, without the score."""
    x = FREE.means()._replace(columns={"preference_score": X.columns["preference_score"]} if scored else {})
    chosen_masks, rejected_masks = masks(x)

    def host(chosen, rejected):
        scores = x.columns.get("preference_score", mx.ones(6))
        return orpo_trainer.orpo_loss(
            chosen, mx.array(0.0), rejected, mx.array(0.0), chosen_masks, rejected_masks, scores, beta=0.1
        )[0]

    def ours(chosen, rejected):
        return (policy_only.orpo(x._replace(chosen=chosen, rejected=rejected), beta=0.1) - chosen).mean()

    same_value_and_gradient(ours, host, x)


def same_value_and_gradient(ours, host, x: Pairs):
    same(ours(*x[:2]), host(*x[:2]))
    for mine, theirs in zip(mx.grad(ours, (0, 1))(*x[:2]), mx.grad(host, (0, 1))(*x[:2]), strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-5, atol=1e-7)
