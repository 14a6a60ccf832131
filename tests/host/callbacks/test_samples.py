"""Samples of policy and reference while a run goes on."""

import json

import mlx.core as mx
import pytest
from mlx_lm import generate, load

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.callbacks.samples import Samples, first_prompts, keep_samples
from tests.conftest import with_lora

PROMPTS = [[6, 7, 8], [9, 10]]


@pytest.fixture
def loaded(model_folder):
    mx.random.seed(0)
    return load(str(model_folder))[:2]


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_policy_and_reference_are_completed_greedily(tmp_path, loaded, model_folder):
    model, tokenizer = loaded
    with_lora(model, moved=False)
    model.train()
    samples = Samples(tmp_path, model, tokenizer, PROMPTS, 6)
    samples.on_val_loss_report({"iteration": 1})
    before = lines(tmp_path)
    assert [line["policy"] for line in before] == [line["reference"] for line in before]
    assert model.training

    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = module.lora_b + 0.5
    samples.on_val_loss_report({"iteration": 20})
    after = lines(tmp_path)[2:]
    plain, _ = load(str(model_folder))[:2]
    for ids, line in zip(PROMPTS, after, strict=True):
        assert line["iteration"] == 20 and line["prompt"] == tokenizer.decode(ids)
        assert line["reference"] == generate(plain, tokenizer, ids, max_tokens=6)
        assert line["policy"] == generate(model.eval(), tokenizer, ids, max_tokens=6)
        assert line["policy"] != line["reference"]


def test_where_all_weights_are_trained_the_reference_is_what_was_at_the_start(tmp_path, loaded):
    model, tokenizer = loaded
    samples = Samples(tmp_path, model, tokenizer, PROMPTS[:1], 6)
    samples.on_val_loss_report({"iteration": 1})
    model.model.norm.weight = model.model.norm.weight * -1
    samples.on_val_loss_report({"iteration": 9})
    first, second = lines(tmp_path)
    assert first["reference"] == first["policy"] == second["reference"] != second["policy"]
    # A run that goes on knows it from the file alone, and says nothing where the file is gone.
    for gone in (False, True):
        if gone:
            (tmp_path / "samples.jsonl").unlink()
        Samples(tmp_path, model, tokenizer, PROMPTS[:1], 6, resumed=True).on_val_loss_report({"iteration": 10})
        assert lines(tmp_path)[-1]["reference"] == ("" if gone else first["reference"])


def test_a_run_that_goes_on_leaves_out_what_comes_again(tmp_path, loaded):
    model, tokenizer = loaded
    samples = Samples(tmp_path, model, tokenizer, PROMPTS, 2)
    for iteration in (1, 20, 40):
        samples.on_val_loss_report({"iteration": iteration})
    with (tmp_path / "samples.jsonl").open("a") as stream:
        stream.write('{"iteration": 60, "pro')
    keep_samples(tmp_path, 20)
    assert [line["iteration"] for line in lines(tmp_path)] == [1, 1, 20, 20]
    keep_samples(tmp_path, 0)
    assert lines(tmp_path) == []
    keep_samples(tmp_path / "nowhere", 0)


def test_no_random_number_is_drawn(tmp_path, loaded):
    from mlx_lm_lora_prefplus.engine.train.snapshot import random_seed

    before = random_seed()
    Samples(tmp_path, *loaded, PROMPTS, 4).on_val_loss_report({"iteration": 1})
    assert random_seed() == before


def test_the_callback_under_it_is_told_first(tmp_path, loaded):
    told = []

    class Inner:
        def on_train_loss_report(self, info):
            told.append(info)

        def on_val_loss_report(self, info):
            assert not (tmp_path / "samples.jsonl").exists()
            told.append(info)

    samples = Samples(tmp_path, *loaded, PROMPTS, 2, wrapped_callback=Inner())
    samples.on_train_loss_report({"iteration": 3})
    samples.on_val_loss_report({"iteration": 4})
    assert told == [{"iteration": 3}, {"iteration": 4}]


def test_what_cannot_be_written_says_so(tmp_path, loaded):
    with pytest.raises(UserError, match=r"Could not write .*samples\.jsonl.*--resume"):
        Samples(tmp_path / "absent", *loaded, PROMPTS, 2).on_val_loss_report({"iteration": 1})


def test_prompts_that_come_twice_are_taken_once():
    rows = [{"prompt": [1]}, {"prompt": [1]}, {"prompt": [2]}, {"prompt": [3]}]
    assert first_prompts(rows, 2) == [[1], [2]]
    assert first_prompts(rows, 9) == [[1], [2], [3]]
