"""The host's functions as ours: signatures, what is trained, payloads, files, options that no argument is for."""

import dataclasses
import importlib.util
import inspect
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm
import mlx_lm_lora.trainer.cpo_trainer as cpo_trainer
import mlx_lm_lora.trainer.dpo_trainer as dpo_trainer
import mlx_lm_lora.trainer.orpo_trainer as orpo_trainer
import numpy as np
import pytest
from datasets import Dataset
from mlx.utils import tree_flatten
from mlx_lm_lora.trainer.datasets import CacheDataset

from mlx_lm_lora_prefplus.bench.sides.host_step import host_gradient
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import dropin, originals
from mlx_lm_lora_prefplus.host.dropin.host_items import token_rows
from mlx_lm_lora_prefplus.host.dropin.settings import FILE, VARIABLE
from mlx_lm_lora_prefplus.host.seam import install as activate
from mlx_lm_lora_prefplus.settings import DataSettings
from tests.conftest import random_rows, tiny_llama, with_lora
from tests.paths import ROOT

MODULES = {"dpo": dpo_trainer, "cpo": cpo_trainer, "orpo": orpo_trainer}
HOOK = Path(originals.__file__).parent / "startup" / "_mlx_lm_lora_prefplus_hook.py"


class Items:
    """What the host's data set classes look like."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]

    def process(self, item):
        return item


class Recorder:
    """A callback that is no `TrainingCallback`, only looks like one."""

    def __init__(self):
        self.train, self.val = [], []

    def on_train_loss_report(self, info):
        self.train.append(info)

    def on_val_loss_report(self, info):
        self.val.append(info)


def host_items(rows, **more):
    return [
        {
            "chosen": row["prompt"] + row["chosen"],
            "rejected": row["prompt"] + row["rejected"],
            "chosen_prompt_length": len(row["prompt"]),
            "rejected_prompt_length": len(row["prompt"]),
            **more,
        }
        for row in rows
    ]


def even_rows(count=6):
    """All completions have the same number of tokens, and so do all prompts; chosen and rejected part at once."""
    rng = np.random.default_rng(1)
    draw = lambda first: [first, *rng.integers(1, 60, 4).tolist()]  # noqa: E731
    return [{"prompt": draw(3), "chosen": draw(1), "rejected": draw(2)} for _ in range(count)]


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)


def go(mode, rows=None, *, model=None, ref_model=None, valid=None, optimizer=None, loss=None, **arguments):
    """Train with ours; returns the model and what the callback got. `arguments` are those of the `TrainingArgs`."""
    model = model or with_lora(tiny_llama(), moved=False)
    seen = Recorder()
    kind = {"dpo": dropin.DPOTrainingArgs, "cpo": dropin.CPOTrainingArgs, "orpo": dropin.ORPOTrainingArgs}[mode]
    given = {
        "model": model,
        "optimizer": optimizer or optim.SGD(0.1),
        "train_dataset": CacheDataset(Items(host_items(random_rows(6) if rows is None else rows))),
        "val_dataset": None if valid is None else CacheDataset(Items(host_items(valid))),
        "args": kind(**{"iters": 1, "batch_size": 6, "adapter_file": "adapters/adapters.safetensors", **arguments}),
        "training_callback": seen,
        **({"ref_model": ref_model} if mode == "dpo" else {}),
        **({} if loss is None else {"loss" if mode == "orpo" else "loss_fn": loss}),
    }
    getattr(dropin, f"train_{mode}")(**given)
    return model, seen


def weights(model):
    return dict(tree_flatten(model.trainable_parameters()))


def same(one, other, atol=1e-6):
    return all(mx.allclose(one[name], other[name], atol=atol) for name in one)


# -- names and signatures


@pytest.mark.parametrize("mode", MODULES)
def test_signatures_are_the_hosts(mode):
    for name, original in originals.originals_of(MODULES[mode]).items():
        theirs, ours = inspect.signature(original), inspect.signature(getattr(dropin, name), follow_wrapped=False)
        assert list(theirs.parameters) == list(ours.parameters), name
        for key, one in theirs.parameters.items():
            if not callable(one.default):
                assert ours.parameters[key].default == one.default, (name, key)


def test_what_is_right_in_the_host_is_the_hosts_own():
    assert dropin.iterate_dpo_batches is dpo_trainer.iterate_dpo_batches
    assert dropin.iterate_orpo_batches is orpo_trainer.iterate_orpo_batches
    assert dropin.CPOTrainingArgs is dropin.DPOTrainingArgs is dpo_trainer.DPOTrainingArgs
    assert dropin.orpo_loss is orpo_trainer.orpo_loss


PROBE = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("_hook_of_this_test", {hook!r})
hook = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hook)
hook.install()
from mlx_lm_lora.trainer.cpo_trainer import train_cpo
from mlx_lm_lora.trainer.dpo_trainer import dpo_loss, evaluate_dpo, iterate_dpo_batches, train_dpo
from mlx_lm_lora.trainer.orpo_trainer import train_orpo
import mlx_lm_lora.train as train
functions = dict(train_cpo=train_cpo, dpo_loss=dpo_loss, evaluate_dpo=evaluate_dpo, train_dpo=train_dpo)
functions |= dict(train_orpo=train_orpo, in_train=train.train_dpo, iterator=iterate_dpo_batches)
print(json.dumps({{name: hasattr(one, "__wrapped__") for name, one in functions.items()}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("patch", ["", "0", "1"])
def test_they_stand_in_the_hosts_modules_where_that_is_asked_for(patch):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLX_LM_LORA_PREFPLUS")}
    environment |= {"MLX_LM_LORA_PREFPLUS_PATCH": patch, "MLX_LM_LORA_PREFPLUS": "strict"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(hook=str(HOOK))],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    ours = json.loads(done.stdout.splitlines()[-1])
    assert ours.pop("iterator") is False
    assert set(ours.values()) == {patch == "1"}


def test_the_hook_and_the_gate_know_the_same_modules():
    spec = importlib.util.spec_from_file_location("_hook_names", HOOK)
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    assert set(originals.WRAPPED) == hook.MODULES
    assert set(hook.ON_REQUEST) == {module.__name__ for module in MODULES.values()}


@pytest.mark.parametrize("mode", MODULES)
def test_a_trainer_module_that_does_not_fit_is_left_alone(mode, monkeypatch, capsys):
    module = MODULES[mode]
    for name, original in originals.originals_of(module).items():
        monkeypatch.setattr(module, name, original)
    monkeypatch.delattr(module, originals.MARK, raising=False)
    monkeypatch.setattr(module, f"evaluate_{mode}", lambda model, something: None)
    before = dict(vars(module))
    assert activate.activate(module) is False
    assert dict(vars(module)) == before
    assert f"evaluate_{mode} takes (model, something)" in capsys.readouterr().err


# -- what is trained


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


@pytest.mark.parametrize("mode", MODULES)
def test_without_an_adapter_file_nothing_is_saved_and_that_is_said(mode, capsys):
    model, _ = go(mode, valid=random_rows(4), iters=4, steps_per_save=2, adapter_file=None)
    assert not same(weights(model), weights(with_lora(tiny_llama(), moved=False)))
    assert list(Path().iterdir()) == []
    out = capsys.readouterr().out
    assert "adapter_file is None: nothing is saved" in out and "Saved" not in out


def test_an_adapter_file_that_is_a_folder_takes_the_adapters_in():
    Path("mine").mkdir()
    go("cpo", adapter_file=Path("mine"))
    assert {"adapters.safetensors", "adapter_config.json"} <= {file.name for file in Path("mine").iterdir()}


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


# -- payloads, files, evaluation


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


@pytest.mark.slow
def test_a_reference_that_follows_the_policy():
    Path("adapters").mkdir()
    Path("adapters", FILE).write_text("sync_ref_model: true\nref_model_sync_steps: 1\nref_model_mixup_alpha: 1.0\n")
    more = {"iters": 3, "steps_per_eval": 1, "valid": random_rows(3)}
    _, moving = go("dpo", ref_model=tiny_llama(), **more)
    _, fixed = go("dpo", ref_model=tiny_llama(), adapter_file="fixed/adapters.safetensors", **more)
    distance = [math.log(2) - seen.val[-1]["val_loss"] for seen in (moving, fixed)]
    assert 0 < distance[0] < 0.75 * distance[1], "one update away from its reference, and not three"


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


@pytest.mark.slow
def test_adapters_that_are_somebody_elses_load_with_mlx_lm(model_folder):
    for dora in (False, True):
        model, _ = mlx_lm.load(str(model_folder))
        with_lora(model, dora=dora, moved=False)
        tuned, _ = go("cpo", model=model, rows=random_rows(6), adapter_file=f"{dora}/adapters.safetensors")
        config = json.loads(Path(f"{dora}/adapter_config.json").read_text())
        assert config["fine_tune_type"] == ("dora" if dora else "lora")
        loaded, _ = mlx_lm.load(str(model_folder), adapter_path=str(dora))
        tokens = mx.array([[6, 7, 8]])
        tuned.eval()
        assert mx.allclose(loaded(tokens), tuned(tokens), atol=1e-5)


def test_an_adapter_config_that_is_there_is_kept_and_completed():
    Path("adapters").mkdir()
    written = {"lora_parameters": {"rank": 4, "dropout": 0.0, "scale": 10.0}, "num_layers": 2}
    Path("adapters/adapter_config.json").write_text(json.dumps(written))
    go("cpo")
    assert json.loads(Path("adapters/adapter_config.json").read_text()) == {"fine_tune_type": "lora", **written}


# -- items


def rows_of(items, **settings):
    return token_rows(items, DataSettings(**settings), "train data set")


@pytest.mark.parametrize(
    ("item", "row"),
    [
        ({"chosen": [1, 2, 3, 4], "rejected": [1, 2, 5]}, ([1, 2], [3, 4], [5])),
        ({"chosen": [1, 2, 3, 4], "rejected": [1, 2, 5], "chosen_prompt_length": 1}, ([1], [2, 3, 4], [2, 5])),
        (
            {"chosen": [1, 2, 3, 4], "rejected": [1, 2, 5], "chosen_prompt_length": 3, "rejected_prompt_length": 3},
            ([1, 2], [3, 4], [5]),
        ),
        ({"chosen": [1, 2], "rejected": [1, 2, 5], "chosen_prompt_length": 9}, ([1], [2], [2, 5])),
        ({"chosen": [1, 2], "rejected": [1, 2]}, ([1], [2], [2])),
        ({"chosen": np.array([1, 2]), "rejected": mx.array([1, 3]), "rejected_prompt_length": 0}, ([1], [2], [3])),
    ],
)
def test_items_become_rows(item, row):
    made = rows_of([item]).rows[0]
    assert (made["prompt"], made["chosen"], made["rejected"]) == row


def test_long_items_lose_the_start_of_the_prompt_and_keep_a_completion():
    item = {"chosen": [*range(1, 11), 50, 51], "rejected": [*range(1, 11), 60], "chosen_prompt_length": 10}
    made = rows_of([item], max_seq_length=6)
    assert made.rows[0] == {"prompt": [7, 8, 9, 10], "chosen": [50, 51], "rejected": [60]}
    assert made.description == "1 of 1, 1 cut to max_seq_length 6"


def test_numbers_of_items_come_along_and_our_own_rows_stay_what_they_are():
    made = rows_of([{"chosen": [1, 2], "rejected": [1, 3], "preference_score": 2, "chosen_prompt_length": 1}])
    assert made.rows[0]["preference_score"] == 2.0 and "chosen_prompt_length" not in made.rows[0]
    own = Dataset.from_list(random_rows(2))
    assert rows_of(CacheDataset(own)).rows is own


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"chosen": [1, 2], "rejected": [3, 4]}], "item 0: chosen and rejected must begin with the same token"),
        ([{"chosen": [1], "rejected": [1, 2]}], "at least one more"),
        ([{"prompt": "text", "completion": "text"}], "item 0: expected a dictionary with token ids .* keys prompt"),
        ([[1, 2, 3]], "found list"),
        ([], "none of 0 rows"),
    ],
)
def test_items_that_cannot_be(items, message):
    with pytest.raises(UserError, match=message):
        rows_of(items)


def test_a_token_beyond_the_embeddings_is_refused():
    with pytest.raises(UserError, match="up to 900"):
        go("cpo", rows=[{"prompt": [1], "chosen": [900], "rejected": [2]}])


# -- options that no argument is for


def test_a_file_beside_the_adapters_gives_further_options(capsys):
    Path("adapters").mkdir()
    Path("adapters", FILE).write_text("loss_type: simpo\nlearning_rate: 1\nsimpo_gama: 2\n")
    given = {"batch_size": 4, "num_batches": -1, "delta": 50.0, "max_seq_length": 64}
    data, untrained = host_items(even_rows(4)), with_lora(tiny_llama(), moved=False)
    simpo = dropin.evaluate_cpo(untrained, data, beta=2.0, loss_type="simpo", **given)
    _, seen = go("cpo", valid=even_rows(4), rows=even_rows())
    assert seen.val[0]["val_loss"] == pytest.approx(simpo[0], rel=1e-6)  # with SimPO's own beta
    out = capsys.readouterr().out
    assert "learning_rate (adapters/prefplus.yaml) has no effect on mode cpo here" in out
    assert "simpo_gama (adapters/prefplus.yaml) has no effect on mode cpo here; did you mean simpo_gamma?" in out


def test_a_file_for_all_runs_and_which_goes_first(monkeypatch):
    Path("all.yaml").write_text("label_smoothing: 0.3\nmax_grad_norm: 0.001\n")
    monkeypatch.setenv(VARIABLE, "all.yaml")
    both, _ = go("cpo", adapter_file="one/adapters.safetensors")
    Path("two").mkdir()
    Path("two", FILE).write_text("max_grad_norm: 1000.0\n")
    free, _ = go("cpo", adapter_file="two/adapters.safetensors")
    monkeypatch.delenv(VARIABLE)
    plain, _ = go("cpo", adapter_file="three/adapters.safetensors")
    assert not same(weights(both), weights(free), atol=1e-5)
    assert not same(weights(free), weights(plain), atol=1e-5)


def test_a_wrong_option_is_refused_before_anything_is_written():
    Path("adapters").mkdir()
    Path("adapters", FILE).write_text("label_smoothing: 0.9\n")
    with pytest.raises(UserError, match="label_smoothing: 0.9"):
        go("cpo", loss_type="sigmiod")
    assert [file.name for file in Path("adapters").iterdir()] == [FILE]


def adapter_files(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).glob("*adapters.safetensors")}


def test_weights_of_others_are_moved_and_those_that_a_run_goes_on_from_stay(capsys):
    args = {"iters": 2, "steps_per_save": 1, "batch_size": 3}
    go("cpo", **args)
    first = adapter_files("adapters")
    assert len(first) == 3
    go("cpo")
    assert "contained weights of another run. They were moved to adapters/previous-1" in capsys.readouterr().out
    assert adapter_files("adapters/previous-1") == first and len(adapter_files("adapters")) == 1

    resumed = with_lora(tiny_llama(), moved=False)
    resumed.load_weights("adapters/previous-1/0000001_adapters.safetensors", strict=False)
    for name, data in first.items():
        Path("again").mkdir(exist_ok=True)
        Path("again", name).write_bytes(data)
    go("cpo", model=resumed, adapter_file="again/adapters.safetensors")
    assert "continues from weights in again. A copy of them is kept in again/previous-1" in capsys.readouterr().out
    assert adapter_files("again/previous-1") == first
    assert {name for name, data in adapter_files("again").items() if data == first[name]} == {
        *("0000001_adapters.safetensors", "0000002_adapters.safetensors")
    }
