"""A method must also be exact on long rows of the data."""

import numpy as np
import pytest

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.probe import select
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import VOCABULARY, tiny_llama, with_lora
from tests.engine import model_zoo
from tests.engine.exactness import batch_of

AUTO = RunSettings()


def test_packed_rows_are_tried_on_the_row_of_the_data():
    """This class attends to blocks of keys by their place in the row, which shows only in rows of several blocks."""
    model = model_zoo.build("minimax_m3_vl", index_block_size=16, index_topk_blocks=4).train()
    short = choose_policy(model, AUTO, packs=True)
    assert isinstance(short.policy, PackedPolicy)
    choice = choose_policy(model, AUTO, examples=batch_of([(60, 40, 40)]), packs=True)
    assert not isinstance(choice.policy, PackedPolicy) and "not exact on rows [0] of the data" in choice.description


def test_padding_is_tried_on_long_rows():
    """The same class: padding between prompt and completion moves the tokens of a completion into other blocks."""
    model = model_zoo.build("minimax_m3_vl", index_block_size=16, index_topk_blocks=4).train()
    one, two = [(120, 40, 40)], [(120, 40, 40), (45, 70, 60)]
    assert type(choose_policy(model, AUTO, examples=batch_of(one), packs=False).policy) is SharedPrefixPolicy
    choice = choose_policy(model, AUTO, examples=batch_of(two), packs=False)
    assert type(choice.policy) is PairwisePrefixPolicy
    assert "the prompt once for its completions: not exact on rows [0, 1] of the data" in choice.description


def test_a_method_that_fails_on_long_rows_is_not_taken(monkeypatch):
    """As a kernel that has no version for them."""

    class Failing(SharedPrefixPolicy):
        def _states(self, batch):
            if batch.prompts.shape[1] > 20:
                raise RuntimeError("no kernel")
            return super()._states(batch)

    ways = [select.Method(Failing, "short rows"), select.Method(HeadPolicy, "together")]
    monkeypatch.setattr(select, "_ways", lambda *_: ways)
    choice = choose_policy(with_lora(tiny_llama()), AUTO, examples=batch_of([(30, 5, 3)], vocabulary=VOCABULARY))
    assert type(choice.policy) is HeadPolicy and "short rows: not exact on rows [0] of the data" in choice.description


def test_a_way_that_fails_on_long_rows_alone_is_not_taken(monkeypatch):
    class Short(SharedPrefixPolicy):
        """As a window that the short rows of the select do not fill."""

        def _states(self, batch):
            return [states * (1 if batch.prompts.shape[1] <= 10 else 1.01) for states in super()._states(batch)]

    model, settings = with_lora(tiny_llama()), RunSettings()
    ways = [select.Method(Short, "short rows"), select.Method(HeadPolicy, "together")]
    monkeypatch.setattr(select, "_ways", lambda *_: ways)
    example = lambda prompt: batch_of([(prompt, 5, 3)], vocabulary=VOCABULARY)  # noqa: E731
    assert type(choose_policy(model, settings).policy) is Short
    assert type(choose_policy(model, settings, example(8)).policy) is Short
    choice = choose_policy(model, settings, example(12))
    assert type(choice.policy) is HeadPolicy
    assert "short rows: not exact on rows [0] of the data" in choice.description


@pytest.mark.parametrize("make", [tiny_llama, lambda: with_lora(tiny_llama(), dropout=0.5)])
def test_an_example_of_many_completions(make):
    rows = [{"prompt": [1] * 9, "completions": [[2, 3], [4], [5, 6, 7], []], "scores": [3.0, 2.0, 1.0]}]
    choice = choose_policy(make(), RunSettings(), collate(rows, np.arange(1)), packs=False)
    assert type(choice.policy) is SharedPrefixPolicy
