"""The host's training functions as ours: what is trained, what is reported, what has an effect."""

import dataclasses
import io
import math
import re
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm_lora.trainer.dpo_trainer as dpo_trainer
import mlx_lm_lora.trainer.orpo_trainer as orpo_trainer
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.bench.sides.host_step import host_gradient
from mlx_lm_lora_prefplus.host import dropin
from mlx_lm_lora_prefplus.host.dropin.settings import FILE
from tests.conftest import random_rows, tiny_llama, with_lora
from tests.host.dropin.calls import MODULES, Items, Recorder, go, host_items, same, weights


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "dpop"])
@pytest.mark.parametrize("mode", ["dpo", "cpo"])
def test_a_step_is_the_hosts_own_gradient(mode, loss):
    rows = random_rows(6)
    model, reference = with_lora(tiny_llama()), tiny_llama()
    before = weights(model)
    items = host_items(rows)
    longest = max(len(item[side]) for item in items for side in ("chosen", "rejected"))
    batch = next(dpo_trainer.iterate_dpo_batches(items, 6, longest))
    _, gradient = host_gradient(model, reference, mode, loss, 0.1, 50.0, False)(*batch)
    gradient = dict(tree_flatten(gradient))
    go(mode, rows, model=model, ref_model=reference, loss_type=loss, optimizer=optim.SGD(1e-2))
    expected = {name: before[name] - 1e-2 * gradient[name] for name in before}
    scale = max(mx.abs(value).max().item() for value in gradient.values()) * 1e-2
    assert same(weights(model), expected, atol=1e-4 * scale)
    assert not same(weights(model), before, atol=1e-3 * scale)


@pytest.mark.parametrize("score", [1.0, 0.7])
def test_a_step_of_orpo_is_the_hosts_own_gradient(score):
    items = host_items(random_rows(6), preference_score=score)
    model = with_lora(tiny_llama())
    before = weights(model)
    longest = max(len(item[side]) for item in items for side in ("chosen", "rejected"))
    batch = next(orpo_trainer.iterate_orpo_batches(items, 6, longest))
    gradient = dict(
        tree_flatten(nn.value_and_grad(model, lambda: orpo_trainer.orpo_loss_from_model(model, *batch)[0])()[1])
    )
    args = dropin.ORPOTrainingArgs(iters=1, batch_size=6, adapter_file="adapters/adapters.safetensors")
    dropin.train_orpo(model, optim.SGD(1e-2), Items(items), args=args)
    expected = {name: before[name] - 1e-2 * gradient[name] for name in before}
    scale = max(mx.abs(value).max().item() for value in gradient.values()) * 1e-2
    assert same(weights(model), expected, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [-1, 1])
def test_without_a_reference_model_the_reference_is_the_model_with_its_adapters_off(layers, capsys):
    """Also where the adapters have moved already, and where a frozen trunk serves policy and reference."""
    rows = {"rows": random_rows(6), "valid": random_rows(4), "iters": 4, "steps_per_eval": 2, "batch_size": 2}
    seen = []
    for ref_model in (None, tiny_llama()):
        np.random.seed(0)
        model = with_lora(tiny_llama(), layers=layers)
        trained, told = go("dpo", model=model, ref_model=ref_model, **rows)
        seen.append((told, weights(trained)))
    assert [one["val_loss"] for one in seen[0][0].val] == pytest.approx([one["val_loss"] for one in seen[1][0].val])
    assert same(seen[0][1], seen[1][1], atol=1e-5)
    assert "Reference: the model with its adapters off, because no ref_model is given" in capsys.readouterr().out


def test_without_adapters_the_reference_is_the_model_before_the_first_step():
    model = tiny_llama()
    _, seen = go("dpo", model=model, valid=random_rows(4), iters=4, steps_per_eval=4)
    assert seen.val[0]["val_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert seen.val[-1]["val_loss"] != pytest.approx(math.log(2), rel=1e-4)


@pytest.mark.parametrize("ref_model", [None, "given"])
def test_reference_free_is_said_by_the_arguments_or_the_file(ref_model, capsys):
    reference = tiny_llama(seed=3) if ref_model else None
    args = dropin.DPOTrainingArgs(iters=1, batch_size=6, adapter_file="a/adapters.safetensors")
    args.reference_free = True
    said = Recorder()
    rows = Items(host_items(random_rows(6)))
    dropin.train_dpo(
        with_lora(tiny_llama(), moved=False), reference, optim.SGD(0.1), rows, rows, args, training_callback=said
    )
    told = capsys.readouterr().out
    assert "Reference: none (reference_free)" in told
    assert ("the ref_model that was given is not used" in told) is bool(ref_model)
    Path("b").mkdir()
    Path("b", FILE).write_text("reference_free: true\n")
    _, by_file = go("dpo", ref_model=reference, valid=random_rows(6), adapter_file="b/adapters.safetensors")
    assert said.val[0]["val_loss"] == by_file.val[0]["val_loss"] != pytest.approx(math.log(2), rel=1e-3)


@pytest.mark.parametrize("mode", MODULES)
def test_without_an_adapter_file_nothing_is_saved_and_that_is_said(mode, capsys):
    model, _ = go(mode, valid=random_rows(4), iters=4, steps_per_save=2, adapter_file=None)
    assert not same(weights(model), weights(with_lora(tiny_llama(), moved=False)))
    assert list(Path().iterdir()) == []
    out = capsys.readouterr().out
    assert "adapter_file is None: nothing is saved" in out and "Saved" not in out


def test_what_is_in_force_is_written_where_the_callback_shows_it():
    """MLX-LoRA-Studio discards what is printed; its callback holds the stream that reaches the app."""
    shown = io.StringIO()
    Path("adapters").mkdir()
    Path("adapters", FILE).write_text("loss_typ: ipo\n")
    seen = Recorder()
    seen.stream = shown
    outer = Recorder()
    outer.wrapped_callback = seen
    args = dropin.DPOTrainingArgs(iters=2, batch_size=6, max_seq_length=8, reference_model_path="runs/2026/11/base")
    args.adapter_file = "adapters/adapters.safetensors"
    rows = Items(host_items(random_rows(6)))
    dropin.train_dpo(with_lora(tiny_llama()), None, optim.SGD(1e6), rows, rows, args, training_callback=outer)
    told = shown.getvalue()
    for words in (
        "Objective: sigmoid (beta 0.1", "Reference: the model with its adapters off", "cut to max_seq_length 8",
        "Trained: LoRA adapters", "Warning: objective_typ (", "Warning: reference_model_path runs/2026",
    ):  # fmt: skip
        assert words in told, words
    for line in told.splitlines():
        assert line.startswith("[prefplus] ")
        assert not re.search(r"loss|it/s|peak[ _]mem|memory:|\d\s*/\s*\d", line, re.IGNORECASE), line


def test_the_policy_as_its_own_reference_is_what_it_was_before():
    model = with_lora(tiny_llama(), moved=False)
    _, seen = go("dpo", model=model, ref_model=model, valid=random_rows(4), iters=8, steps_per_eval=4)
    assert seen.val[0]["val_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert seen.val[-1]["val_loss"] != pytest.approx(math.log(2), rel=1e-4)


FIELDS = {
    "iters": 2, "batch_size": 3, "gradient_accumulation_steps": 2, "val_batches": -1, "steps_per_report": 1,
    "steps_per_eval": 1, "steps_per_save": 1, "max_seq_length": 8, "adapter_file": "x/adapters.safetensors",
    "grad_checkpoint": True, "seq_step_size": 4, "recurrence_chunk_size": 8, "qat_enable": True, "qat_bits": 4,
    "qat_group_size": 32, "qat_mode": "affine", "qat_start_step": 2, "qat_interval": 2, "beta": 0.3, "delta": 5.0,
    "loss_type": "dpop", "reference_model_path": "somewhere", "reward_scaling": 2.0,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODULES)
def test_every_field_of_the_argument_classes_is_accepted(mode):
    kind = {"dpo": dropin.DPOTrainingArgs, "cpo": dropin.CPOTrainingArgs, "orpo": dropin.ORPOTrainingArgs}[mode]
    names = [field.name for field in dataclasses.fields(kind)]
    assert set(names) <= set(FIELDS)
    for name in names:
        value = {"loss_type": "nll"}.get(name, FIELDS[name]) if mode == "orpo" else FIELDS[name]
        _, seen = go(mode, valid=random_rows(3), **{name: value})
        assert seen.train, name


@pytest.mark.parametrize(
    "arguments", [{"qat_enable": True, "qat_bits": 2}, {"seq_step_size": 3}, {"beta": 0.9}], ids=str
)
@pytest.mark.slow
def test_what_is_given_is_used(arguments):
    plain, _ = go("cpo", iters=3)
    other, _ = go("cpo", iters=3, **arguments)
    assert same(weights(plain), weights(other)) is ("seq_step_size" in arguments)  # in pieces it is exact


def test_numpys_random_state_decides_the_order_of_rows():
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        model, _ = go("cpo", batch_size=2, iters=4)
        results.append(weights(model))
    assert same(results[0], results[1], atol=0) and not same(results[0], results[2], atol=1e-7)


@pytest.mark.parametrize("mode", MODULES)
def test_payloads_are_the_hosts_to_the_letter(mode, capsys):
    _, seen = go(mode, valid=random_rows(3), iters=4, steps_per_report=2, steps_per_eval=2, steps_per_save=2)
    assert [one["iteration"] for one in seen.train] == [2, 4]
    assert [one["iteration"] for one in seen.val] == [1, 2, 4]
    assert set(seen.train[0]) == {
        "iteration", "train_loss", "train_chosen_reward", "train_rejected_reward", "train_accuracies",
        "train_margins", "train_policy_rejected_logps", "train_policy_chosen_logps", "train_rejected_logits_mean",
        "train_chosen_logits_mean", "learning_rate", "iterations_per_second", "tokens_per_second", "trained_tokens",
        "peak_memory",
    }  # fmt: skip
    assert set(seen.val[0]) == {
        "iteration", "val_loss", "val_chosen_reward", "val_rejected_reward", "val_chosen_r", "val_rejected_r",
        "val_accuracies", "val_margins", "val_policy_rejected_logps", "val_policy_chosen_logps",
        "val_rejected_logits_mean", "val_chosen_logits_mean", "val_time",
    }  # fmt: skip
    for payload in seen.train + seen.val:
        assert all(math.isfinite(value) and type(value) in (int, float) for value in payload.values())
    assert {file.name for file in Path("adapters").glob("*.safetensors")} == {
        "adapters.safetensors",
        "0000002_adapters.safetensors",
        "0000004_adapters.safetensors",
    }
    out = capsys.readouterr().out
    assert f"train_{mode} is run by mlx-lm-lora-prefplus" in out
    assert "Iter 2: Saved adapter weights to adapters/adapters.safetensors and adapters/0000002_adapters" in out


@pytest.mark.slow
def test_a_reference_that_follows_the_policy():
    Path("adapters").mkdir()
    Path("adapters", FILE).write_text("sync_ref_model: true\nref_model_sync_steps: 1\nref_model_mixup_alpha: 1.0\n")
    more = {"iters": 3, "steps_per_eval": 1, "valid": random_rows(3)}
    _, moving = go("dpo", ref_model=tiny_llama(), **more)
    _, fixed = go("dpo", ref_model=tiny_llama(), adapter_file="fixed/adapters.safetensors", **more)
    distance = [math.log(2) - seen.val[-1]["val_loss"] for seen in (moving, fixed)]
    assert 0 < distance[0] < 0.75 * distance[1], "one update away from its reference, and not three"


def test_a_model_without_layers_trains_also_with_grad_checkpoint():
    class OneLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(64, 64)

        def __call__(self, tokens, cache=None):
            return self.embedding(tokens)

    model = OneLayer()
    before = mx.array(model.embedding.weight)
    go("cpo", model=model, grad_checkpoint=True)
    assert not mx.array_equal(model.embedding.weight, before)


@pytest.mark.parametrize("grad_checkpoint", [True, False])
def test_grad_checkpoint_takes_effect(grad_checkpoint, capsys):
    go("dpo", grad_checkpoint=grad_checkpoint)
    assert ("keeping the inputs of layers" in capsys.readouterr().out) is grad_checkpoint
