"""The losses of the host's functions: its own, those of the mode, and those of the caller."""

import inspect
import math

import mlx.core as mx
import mlx.optimizers as optim
import mlx_lm_lora.trainer.cpo_trainer as cpo_trainer
import mlx_lm_lora.trainer.dpo_trainer as dpo_trainer
import numpy as np
import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import dropin, originals
from tests.conftest import random_rows, tiny_llama, with_lora
from tests.host.dropin.calls import MODULES, Items, go, host_items, same, weights


def test_the_loss_type_argument_goes_before_that_of_the_args():
    results = []
    for argument, of_args in (("sigmoid", "sigmoid"), ("ipo", "sigmoid"), ("sigmoid", "ipo"), ("ipo", "hinge")):
        model = with_lora(tiny_llama(), moved=False)
        args = dropin.DPOTrainingArgs(iters=1, batch_size=6, loss_type=of_args, adapter_file="a/adapters.safetensors")
        dropin.train_dpo(model, None, optim.SGD(0.1), Items(host_items(random_rows(6))), args=args, loss_type=argument)
        results.append(weights(model))
    assert not same(results[0], results[1])
    assert same(results[1], results[2]) and same(results[1], results[3])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODULES)
def test_a_loss_of_the_callers_is_called_as_the_host_calls_it(mode):
    stock = getattr(MODULES[mode], f"{mode}_loss")
    original = originals.originals_of(MODULES[mode]).get(f"{mode}_loss", stock)
    calls = []

    def own(**given):
        calls.append(given)
        return original(**given)

    reference = {"ref_model": tiny_llama()} if mode == "dpo" else {}
    for kind in ["ipo", "sigmoid"] if mode != "orpo" else [None]:
        chosen = {} if kind is None else {"loss_type": kind}
        plain, seen = go(mode, model=with_lora(tiny_llama()), **reference, **chosen)
        called, told = go(mode, model=with_lora(tiny_llama()), loss=own, **reference, **chosen)
        assert same(weights(plain), weights(called))
        assert told.train[0]["train_loss"] == pytest.approx(seen.train[0]["train_loss"], rel=1e-5)
        if kind != "ipo":  # whose rewards are means a token in the host's loss and sums, as TRL's, in ours
            assert told.train[0]["train_margins"] == pytest.approx(seen.train[0]["train_margins"], rel=1e-4)
    expected = set(inspect.signature(original).parameters)
    assert all(set(call) == expected for call in calls) and calls


@pytest.mark.usefixtures("compiling")
def test_two_equal_sums_do_not_break_a_compiled_step():
    """On mlx 0.32.4 the host's `cpo_loss` fails here with an IndexError."""
    masks = mx.ones((2, 4))
    value = mx.compile(lambda a, b: dropin.cpo_loss(a, b, masks, masks, 0.1, 50.0))
    loss, rewards, tokens, metrics = value(mx.array([-3.0, -2.0]), mx.array([-2.5, -4.0]))
    mx.eval(loss, rewards, tokens, metrics)
    assert metrics["accuracies"].item() == 0.5


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "dpop"])
def test_the_losses_are_the_hosts_and_accuracies_count_pairs(loss):
    rng = np.random.default_rng(0)
    scores = [mx.array(-rng.random(4) * 9) for _ in range(4)]
    masks = [mx.ones((4, 6)), mx.ones((4, 5))]
    for ours, theirs, given in (
        (dropin.dpo_loss, originals.originals_of(dpo_trainer)["dpo_loss"], scores),
        (dropin.cpo_loss, originals.originals_of(cpo_trainer)["cpo_loss"], scores[:2]),
    ):
        one, other = ours(*given, *masks, 0.1, 50.0, loss), theirs(*given, *masks, 0.1, 50.0, loss)
        assert all(mx.array_equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
        logratios = [scores[0] - scores[2], scores[1] - scores[3]] if len(given) == 4 else given
        assert one[3]["accuracies"].item() == pytest.approx(
            (logratios[0] > logratios[1]).astype(mx.float32).mean().item()
        )
        assert one[3]["margins"].item() == other[3]["margins"].item()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bco_pair", "nca_pair", "aot", "sigmoid_norm", "exo_pair"])
def test_any_loss_of_the_mode_trains_and_evaluates(name):
    model, seen = go("dpo", ref_model=tiny_llama(), loss_type=name, iters=2, valid=random_rows(3))
    given = {"batch_size": 3, "num_batches": -1, "beta": 0.1, "delta": 50.0, "max_seq_length": 64}
    loss, *_ = dropin.evaluate_dpo(model, tiny_llama(), host_items(random_rows(3)), loss_type=name, **given)
    assert math.isfinite(loss) and seen.train


def test_a_loss_of_lists_is_refused():
    with pytest.raises(UserError, match="plackett_luce needs ranked rows"):
        go("dpo", loss_type="plackett_luce")
