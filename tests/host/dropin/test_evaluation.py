"""`evaluate_dpo`, `evaluate_cpo` and `evaluate_orpo` as ours."""

import math

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import dropin, originals
from tests.conftest import random_rows, tiny_llama, with_lora
from tests.host.dropin.calls import MODULES, Items, even_rows, host_items


def test_evaluation_without_a_reference_model_compares_with_the_adapters_off(capsys):
    data = Items(host_items(random_rows(6)))
    given = {"batch_size": 2, "num_batches": -1, "beta": 0.1, "delta": 5.0, "max_seq_length": 64}
    both = [
        dropin.evaluate_dpo(with_lora(tiny_llama()), one, data, loss_type="sigmoid", **given)[0]
        for one in (None, tiny_llama())
    ]
    assert both[0] == pytest.approx(both[1]) != pytest.approx(math.log(2), rel=1e-3)
    assert "Reference: the model with its adapters off" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"this model has no adapters.*Pass the model before training"):
        dropin.evaluate_dpo(tiny_llama(), None, data, loss_type="sigmoid", **given)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODULES)
def test_evaluation_agrees_with_the_hosts_where_the_host_is_right(mode):
    """Rows of one length: the host's weighing by tokens changes nothing. One row a batch: its accuracies are right."""
    items = host_items(even_rows())
    model, reference = with_lora(tiny_llama()), tiny_llama()
    given = {"model": model, "dataset": items, "batch_size": 1, "num_batches": -1, "beta": 0.2, "max_seq_length": 64}
    given |= {"delta": 3.0, "loss_type": "dpop"} if mode != "orpo" else {}
    given |= {"ref_model": reference} if mode == "dpo" else {}
    theirs = originals.originals_of(MODULES[mode])[f"evaluate_{mode}"](**given)
    loss, rewards, tokens, metrics = getattr(dropin, f"evaluate_{mode}")(**given)
    assert loss == pytest.approx(theirs[0], rel=1e-5)
    assert rewards == pytest.approx(theirs[1], rel=1e-4)
    assert tokens.item() == theirs[2].item() == 60
    for name in ("accuracies", "margins") + (("policy_chosen_logps",) if mode != "orpo" else ()):
        assert metrics[name] == pytest.approx(theirs[3][name], rel=1e-4, abs=1e-6), name
    given["batch_size"] = 4
    assert getattr(dropin, f"evaluate_{mode}")(**given)[0] == pytest.approx(loss, rel=1e-5)


def test_evaluation_takes_a_model_that_is_only_a_function():
    class Uniform:
        def eval(self):
            pass

        def __call__(self, tokens, cache=None):
            return mx.zeros((*tokens.shape, 4))

    data = [{"chosen": [0, 1, 2, 3], "rejected": [0, 1, 2], "chosen_prompt_length": 2, "rejected_prompt_length": 2}]
    given = {"dataset": data, "batch_size": 1, "num_batches": 1, "beta": 0.1, "delta": 2.0, "max_seq_length": 4}
    _, rewards, tokens, metrics = dropin.evaluate_cpo(Uniform(), loss_type="sigmoid", **given)
    assert tokens.item() == 3
    assert rewards == pytest.approx([-0.2 * math.log(4), -0.1 * math.log(4)])
    assert metrics["margins"] == pytest.approx(rewards[0] - rewards[1])
