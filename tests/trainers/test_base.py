"""What trainers inherit, and what stored reference log-probs are kept by."""

from dataclasses import dataclass, fields, replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.plugin import LossOutput, Trainer
from mlx_lm_lora_prefplus.trainers import BCO, CPO, DPO, KTO, ORPO, SIMPO, BaseTrainer
from tests.conftest import iterate_batches, random_rows, tiny_llama, with_lora

ROWS = random_rows(6, seed=2)


@dataclass(frozen=True)
class Beta:
    """The options of a small trainer."""

    beta: float = 0.5


class Small(BaseTrainer):
    """A mode that has a loss alone."""

    mode, options = "small", Beta

    def loss(self, policy, batch, options, state):
        return LossOutput({"examples": -policy(batch).logps.sum()}, {})


def test_a_loss_alone_makes_a_trainer():
    trainer, options = Small(), Beta()
    (batch,) = iterate_batches(ROWS, batch_size=6, shuffle=False)
    policy = PlainPolicy(with_lora(tiny_llama()))
    assert isinstance(trainer, Trainer)
    assert trainer.evaluate(policy, iter([batch]), options, {}).keys() == {"loss"}
    expected = 0.5 * np.array(policy(batch).logps)
    assert np.allclose(np.array(trainer.rewards(policy(batch), batch, options)), expected, rtol=1e-6)
    same = trainer.collate(ROWS, np.arange(6))
    assert np.array_equal(np.array(same.tokens), np.array(batch.tokens))


class Recorder:
    """Options that note which of them were read."""

    def __init__(self, options):
        self.options, self.read = options, set[str]()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self.options, name)


@pytest.mark.parametrize("trainer", [CPO, DPO, SIMPO, ORPO, KTO, BCO], ids=lambda trainer: trainer.mode)
def test_reference_log_probs_are_stored_by_every_option_that_weighs_tokens(trainer):
    """Whatever `token_weights` reads must be part of the key, or stale log-probs would be used in silence."""
    (batch,) = iterate_batches(ROWS, batch_size=6, shuffle=False)
    recorder = Recorder(trainer.options())
    trainer.token_weights(batch, recorder)
    known = {field.name for field in fields(trainer.options)}
    assert recorder.read & known <= set(trainer.reference_key(trainer.options()) or ())


def test_options_that_weigh_tokens_change_the_key_and_the_others_do_not():
    plain = DPO.options()
    keys = [DPO.reference_key(replace(plain, **change)) for change in ({}, {"ld_alpha": 0.5}, {"sampo": True})]
    assert len({str(key) for key in keys}) == 3
    assert DPO.reference_key(replace(plain, beta=0.7)) == keys[0]


def test_a_class_that_weighs_tokens_its_own_way_is_kept_by_all_its_options():
    class Own(type(DPO)):
        def token_weights(self, batch, options):
            return mx.full(batch.completions.shape, options.beta)

    own = Own(**vars(DPO))
    assert own.reference_key(DPO.options(beta=0.1)) != own.reference_key(DPO.options(beta=0.2))
