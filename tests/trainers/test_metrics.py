"""Metrics of TRL's names mean what TRL's mean, each worked out from per-token log-probs by TRL's own formula."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.engine.log.metric_sums import MetricSums, flatten
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.trainers import CPO, DPO, KTO
from tests.conftest import iterate_batches
from tests.engine import model_zoo
from tests.engine.exactness import batch_of

LENGTHS = [(4, 9, 14), (2, 30, 3), (6, 1, 22)]
MODEL = model_zoo.build("llama")
BATCH = batch_of(LENGTHS)._replace(reference_logps=mx.array([-30.0, -90.0, -5.0, -50.0, -12.0, -80.0]))
TOKENS = np.array(BATCH.completion_lengths)


def metrics(trainer, batch=BATCH, **options):
    """Means of one batch, as the loop reports them."""
    MODEL.eval()
    layout, values = flatten(trainer.loss(PlainPolicy(MODEL), batch, trainer.options(**options), {}))
    totals = MetricSums()
    totals.add(batch.units(), layout, values)
    return totals.means()


def logits():
    found, mask = np.array(MODEL(BATCH.tokens[:, :-1]), np.float64), np.array(BATCH.completion_mask)
    return found, mask


def token_logps():
    found, mask = logits()
    logps = found - np.log(np.exp(found).sum(-1, keepdims=True))
    targets = np.array(BATCH.tokens[:, 1:])[..., None]
    return np.where(mask, np.take_along_axis(logps, targets, -1)[..., 0], 0), logps, mask


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "sigmoid_norm"])
def test_rewards_of_dpo_are_of_sums(loss):
    rewards = 0.3 * (token_logps()[0].sum(1) - np.array(BATCH.reference_logps))
    found = metrics(DPO, loss_type=loss, beta=0.3)
    assert found["rewards/chosen"] == pytest.approx(rewards[:3].mean(), rel=1e-4)
    assert found["rewards/rejected"] == pytest.approx(rewards[3:].mean(), rel=1e-4)
    assert found["rewards/accuracies"] == pytest.approx((rewards[:3] > rewards[3:]).mean())


@pytest.mark.parametrize("alpha", [0.25, -0.5])
def test_rewards_of_alphapo_are_its_own(alpha):
    mean = token_logps()[0].sum(1) / TOKENS
    rewards = 2.5 * (1 - np.exp(mean) ** -alpha) / alpha
    found = metrics(CPO, loss_type="alphapo", beta=2.5, alphapo_alpha=alpha)
    assert found["rewards/chosen"] == pytest.approx(rewards[:3].mean(), rel=1e-4)
    assert found["rewards/margins"] == pytest.approx((rewards[:3] - rewards[3:]).mean(), rel=1e-3)


def test_entropy_and_logits_are_means_over_all_tokens():
    _, logps, mask = token_logps()
    entropy = -(np.exp(logps) * logps).sum(-1)
    found, of_logits = metrics(DPO), logits()[0].mean(-1)
    assert found["entropy"] == pytest.approx(entropy[mask].mean(), rel=1e-4)
    for name, rows in (("chosen", slice(0, 3)), ("rejected", slice(3, 6))):
        assert found[f"logits/{name}"] == pytest.approx(of_logits[rows][mask[rows]].mean(), rel=1e-3, abs=1e-5)


def test_logps_have_the_weights_of_ld_alpha():
    plain, place = token_logps()[0], np.cumsum(np.array(BATCH.completion_mask), axis=1)
    shorter = np.tile(np.minimum(TOKENS[:3], TOKENS[3:]), 2)[:, None]
    weighted = np.where(place <= shorter, 1, 0.4) * plain
    found = metrics(DPO, ld_alpha=0.4)
    assert found["logps/chosen"] == pytest.approx(weighted.sum(1)[:3].mean(), rel=1e-4)
    assert found["logps_per_token/chosen"] == pytest.approx((plain.sum(1) / TOKENS)[:3].mean(), rel=1e-4)


def unpaired(mismatched):
    rows = [{"prompt": [1, 2], "completion": [3, 4, 5][: i + 1], "label": float(i % 2)} for i in range(3)]
    return next(iterate_batches(rows, batch_size=3, shuffle=False, mismatched=mismatched))


def test_kl_is_left_out_where_it_is_not_read():
    assert "kl" in metrics(KTO, unpaired(mismatched=True))
    assert "kl" not in metrics(KTO, unpaired(mismatched=False), loss_type="apo_zero_unpaired")


def test_a_batch_without_completions_of_other_rows_is_refused_by_a_loss_that_reads_them():
    with pytest.raises(ValueError, match="loss_type kto uses Batch.mismatched, but this batch has none"):
        metrics(KTO, unpaired(mismatched=False))
