"""The small model: its tokenizer, and that mlx_lm reads and quantises what is written."""

import random

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.utils import load_config, quantize_model

from mlx_lm_lora_prefplus.quickstart import model as small
from mlx_lm_lora_prefplus.quickstart import world


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "model"
    small.make_model(folder, steps=2)
    return folder


def test_text_survives_the_tokenizer():
    tokenizer, rng = small.make_tokenizer(), random.Random(0)
    for question in world.questions():
        for text in (question.text, world.blunt(question), world.courteous(question, rng)):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_the_prompt_is_a_prefix_of_the_dialogue():
    tokenizer = small.make_tokenizer()
    prompt = small.encode(tokenizer, "What does the cow eat?")
    whole = small.encode(tokenizer, "What does the cow eat?", "It eats grass.")
    assert whole[: len(prompt)] == prompt
    assert whole[0] == tokenizer.bos_token_id
    assert whole[-1] == tokenizer.eos_token_id
    assert [token in (tokenizer.bos_token_id, tokenizer.eos_token_id) for token in whole].count(True) == 2


def test_mlx_lm_loads_the_folder(made):
    model, tokenizer = load(str(made))[:2]
    ids = small.encode(tokenizer, "Where does the owl live?")
    logits = model(mx.array([ids]))
    assert logits.shape[-1] >= len(small.make_tokenizer())
    assert mx.isfinite(logits).all()
    assert small.encode(small.make_tokenizer(), "Where does the owl live?") == ids
    assert tokenizer.eos_token_ids == {tokenizer.eos_token_id}


@pytest.mark.parametrize("group_size", [64, 128])
def test_the_model_can_be_quantised(made, group_size):
    model = load(str(made))[0]
    config = load_config(made)
    quantised, _ = quantize_model(model, config, group_size, 4)
    linears = [m for _, m in quantised.named_modules() if isinstance(m, nn.Linear)]
    assert not linears
    assert any(name.endswith("scales") for name, _ in tree_flatten(quantised.parameters()))
    assert mx.isfinite(quantised(mx.array([[2, 3, 4]]))).all()


@pytest.mark.slow
def test_pretraining_lowers_the_loss_and_repeats(capsys):
    tokenizer = small.make_tokenizer()
    first, again, start = (small.pretrain(tokenizer, steps)[0] for steps in (12, 12, 1))
    weights, same_weights = dict(tree_flatten(first.parameters())), dict(tree_flatten(again.parameters()))
    assert all(mx.array_equal(weights[name], same_weights[name]) for name in weights)
    tokens, mask = next(small._batches(tokenizer, 1))
    lower, higher = (float(small._loss(model, tokens, mask)) for model in (first, start))
    assert lower < 0.8 * higher
    assert "pretraining step 12/12" in capsys.readouterr().out
