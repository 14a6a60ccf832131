"""The best value of a metric, whichever direction is good."""

import pytest

from mlx_lm_lora_prefplus.engine.train.early_stopping import BestMetric, lower_is_better
from mlx_lm_lora_prefplus.errors import UserError


@pytest.mark.parametrize("name", ["loss", "nll_loss", "rewards/rejected", "logps/rejected", "kl", "kl_divergence"])
def test_lower_is_better(name):
    assert lower_is_better(name)


@pytest.mark.parametrize("name", ["rewards/accuracies", "rewards/margins", "rewards/chosen", "logps/chosen", "entropy"])
def test_higher_is_better(name):
    assert not lower_is_better(name)


def test_best_and_stale():
    best = BestMetric("loss", "save_best")
    assert [best.update({"loss": value}, i) for i, value in enumerate((3.0, 2.0, 2.0, 4.0, 1.0, 1.5))] == [
        *(True, True, False, False, True, False)
    ]
    assert (best.value, best.iteration, best.stale) == (1.0, 4, 1)
    again, other = BestMetric("loss", "save_best"), BestMetric("rewards/margins", "save_best")
    again.load(best.dump())
    other.load(best.dump())
    assert again.dump() == best.dump() and other.value is None
    assert "loss" not in best.description


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(UserError, match="save_best: validation has no metric 'acc'. Choose from: kl, loss"):
        BestMetric("acc", "save_best").update({"loss": 1.0, "kl": 2.0}, 1)
