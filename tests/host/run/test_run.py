"""Runs of our modes through the host's `main`, in this process: what is trained, saved, said and refused."""

import json
import math
import re
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import mlx_lm_lora.train as host
import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.seam.install import activate
from tests.conftest import Recorder

activate(host)


def weights(folder="adapters") -> dict[str, mx.array]:
    return mx.load(f"{folder}/adapters.safetensors")


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
@pytest.mark.parametrize("mode", ["dpo", pytest.param("cpo", marks=pytest.mark.slow)])
def test_adapters_load_and_act_with_mlx_lm(go, model_folder, mode, kind):
    go(train_mode=mode, train_type=kind)
    base, _ = mlx_lm.load(str(model_folder))
    tuned, _ = mlx_lm.load(str(model_folder), adapter_path="adapters")
    tokens = mx.array([[6, 7, 8]])
    assert not mx.allclose(base(tokens), tuned(tokens), atol=1e-4)
    assert json.loads(Path("adapters/adapter_config.json").read_text())["fine_tune_type"] == kind


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"load_in_4bits": True}, {"load_in_8bits": True}, {"load_in_mxfp4": True}])
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_the_first_validation_is_ln_2(go, how, kind):
    """Policy and reference are one before the first step: sigmoid is ln 2 to float32 rounding, margins 0."""
    _, seen = go(train_type=kind, **how)
    assert seen.val[0]["val_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert seen.val[0]["val_margins"] == pytest.approx(0, abs=1e-5)
    assert seen.val[-1]["val_loss"] != pytest.approx(math.log(2), rel=1e-6)


def test_log_lines_and_payloads_are_the_hosts(go):
    out, seen = go()
    number = r"-?\d+\.\d{3}"
    assert [m for m in re.findall(r"^Iter (\d+): loss", out, re.M)] == ["2", "4"]
    assert re.search(
        rf"^Iter 2: loss {number}, chosen_r {number}, rejected_r {number}, acc {number}, margin {number}, "
        rf"lr 1\.000e-03, it/s {number}, tok/s {number}, peak_mem {number}GB$",
        out,
        re.M,
    )
    val = rf"Val loss {number}, Val chosen reward {number}, Val rejected reward {number}, Val accuracy {number}"
    assert re.findall(rf"^\s*Iter (\d+): {val}, Val margin {number}, Val took {number}s$", out, re.M) == ["1", "2", "4"]
    assert "Iter 2: Saved adapter weights to adapters/adapters.safetensors and adapters/0000002_adapters" in out
    assert "Saved final weights to adapters/adapters.safetensors." in out
    assert set(seen.train[0]) == {
        "iteration", "train_loss", "train_chosen_reward", "train_rejected_reward", "train_accuracies",
        "train_margins", "train_policy_rejected_logps", "train_policy_chosen_logps", "train_rejected_logits_mean",
        "train_chosen_logits_mean", "learning_rate", "iterations_per_second", "tokens_per_second", "trained_tokens",
        "peak_memory",
    }  # fmt: skip
    assert {key.removeprefix("val_") for key in seen.val[0]} == {
        "iteration", "loss", "chosen_reward", "rejected_reward", "chosen_r", "rejected_r", "accuracies", "margins",
        "policy_rejected_logps", "policy_chosen_logps", "rejected_logits_mean", "chosen_logits_mean", "time",
    }  # fmt: skip
    for payload in seen.train + seen.val:
        assert all(math.isfinite(value) and type(value) in (int, float) for value in payload.values())


def test_summary_names_what_is_in_force(go):
    out, _ = go(loss_type="ipo", delta=50.0, sft_weight=0.5)
    assert "Prompt format: chat, text becomes messages for the chat template" in out
    assert "Mode: dpo, by mlx-lm-lora-prefplus" in out
    assert "Objective: ipo (beta 0.1, sft_weight 0.5)" in out
    assert "Reference: the model with its adapters off" in out
    assert "Rows, train: 10 of 10" in out
    assert out.count("delta is not used by") == 1
    told = [line for line in out.splitlines() if "[INFO]" in line]
    assert not any(word in line for line in told for word in ("loss", "it/s", "peak mem", "memory:"))


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(go):
    go(adapter_path="one", lora_parameters={"rank": 4, "dropout": 0.1, "scale": 10.0})
    go(adapter_path="two", lora_parameters={"rank": 4, "dropout": 0.1, "scale": 10.0})
    go(adapter_path="three", lora_parameters={"rank": 4, "dropout": 0.1, "scale": 10.0}, seed=1)
    one, two, three = (Path(name, "adapters.safetensors").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dpo", "cpo"])
def test_the_four_losses_train_differently(go, mode):
    results = []
    for name in ("sigmoid", "hinge", "ipo", "dpop"):
        go(train_mode=mode, dpo_cpo_loss_type=name, adapter_path=name)
        results.append(weights(name))
    for i, one in enumerate(results):
        for other in results[i + 1 :]:
            assert not all(mx.allclose(one[key], other[key], atol=1e-6) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 64},
        {"val_batches": 0},
        {"val_batches": -1},
        {"iters": 3, "gradient_accumulation_steps": 4},
        {"iters": None, "epochs": 2},
        {"optimizer": "adamw"},
        {"optimizer": "muon"},
        {"lr_schedule": {"name": "cosine_decay", "arguments": [1e-3, 10], "warmup": 2}},
        {"max_grad_norm": 0.1},
        {"grad_checkpoint": True},
        {"num_layers": 1},
        {"efficient_long_context": True},
        {"max_seq_length": 6},
        {"reference_free": True},
        {"label_smoothing": 0.1, "sft_weight": 0.3},
        {"lora_parameters": {"rank": 4, "keys": ["self_attn.q_proj"]}},
        {"train": True, "test": True},
    ],
    ids=str,
)
def test_it_trains_with(go, changes):
    out, seen = go(**changes)
    assert seen.train
    assert any(mx.abs(value).max().item() > 0 for name, value in weights().items() if name.endswith("lora_b"))
    if changes.get("val_batches") == 0:
        assert not seen.val
    if "test" in changes:
        assert "Test Results:" in out and "DPO Test Metrics:" in out


def test_clipping_reaches_the_optimiser(go):
    """Adam scales what it is given, so a bound on the update cannot be read off; that clipping is applied can."""
    go(adapter_path="free", optimizer="adam", iters=2)
    go(adapter_path="clipped", optimizer="adam", iters=2, max_grad_norm=1e-4)
    free, clipped = weights("free"), weights("clipped")
    assert not all(mx.array_equal(free[key], clipped[key]) for key in free)


def test_accumulation_equals_one_large_batch(go):
    """Two micro-batches of 5 pairs are one batch of 10: the same rows, the same mean, the same update."""
    go(adapter_path="large", batch_size=10, iters=1)
    go(adapter_path="cut", batch_size=5, iters=2, gradient_accumulation_steps=2)
    large, cut = weights("large"), weights("cut")
    for name, value in large.items():
        if name.endswith("lora_a"):
            assert mx.array_equal(value, cut[name])  # lora_b is 0: no gradient reaches lora_a in the first step
        elif mx.abs(value).max().item() > 0:
            assert mx.allclose(value, cut[name], atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_resume_adapter_file(go, kind):
    go(train_type=kind, adapter_path="first")
    out, seen = go(train_type=kind, adapter_path="second", resume_adapter_file="first/adapters.safetensors")
    assert "reference_model_path: first/adapters.safetensors" in out or kind == "full"
    # The reference stays the base, so the resumed policy is not at ln 2.
    assert seen.val[0]["val_loss"] != pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.slow
def test_reference_model_path_takes_adapters_and_models(go, model_folder):
    go(adapter_path="first")
    for path in ("first", "first/adapters.safetensors", "first/0000004_adapters.safetensors"):
        _, seen = go(adapter_path="x", resume_adapter_file="first/adapters.safetensors", reference_model_path=path)
        assert seen.val[0]["val_loss"] == pytest.approx(math.log(2), rel=1e-5)
    _, seen = go(adapter_path="y", reference_model_path=str(model_folder))
    assert seen.val[0]["val_loss"] == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dpo", "cpo"])
def test_qat_trains_differently_and_leaves_nothing(go, mode):
    call = nn.Linear.__call__
    go(train_mode=mode, adapter_path="plain")
    go(train_mode=mode, adapter_path="qat", qat_enable=True, qat_bits=2)
    go(train_mode=mode, adapter_path="late", qat_enable=True, qat_bits=2, qat_start_step=5)
    assert not all(mx.array_equal(weights("plain")[key], weights("qat")[key]) for key in weights("plain"))
    assert Path("plain/adapters.safetensors").read_bytes() == Path("late/adapters.safetensors").read_bytes()
    assert nn.Linear.__call__ is call


def test_qat_on_a_quantised_base_says_so(go):
    out, _ = go(qat_enable=True, load_in_4bits=True)
    assert "qat_enable has no effect, because" in out


def test_fuse_writes_a_model_that_answers_like_the_adapters(go, model_folder):
    go(fuse=True)
    tuned, _ = mlx_lm.load(str(model_folder), adapter_path="adapters")
    fused, _ = mlx_lm.load("adapters")
    tokens = mx.array([[6, 7, 8]])
    assert mx.allclose(tuned(tokens), fused(tokens), atol=1e-3)


def test_fuse_that_cannot_fit_is_refused_after_the_adapters(go, monkeypatch):
    from mlx_lm_lora_prefplus.host.output import fuse

    monkeypatch.setattr(fuse, "total_memory", lambda: 1000)
    with pytest.raises(UserError, match="adapters are trained and saved in adapters.*fusing needs .*--no-fuse"):
        go(fuse=True)
    assert Path("adapters/adapters.safetensors").is_file()
    assert not Path("adapters/model.safetensors").exists()


def test_fuse_that_fails_says_that_the_adapters_are_saved(go, monkeypatch):
    def full(**_):
        raise RuntimeError("Unable to write 138 bytes")

    monkeypatch.setattr("mlx_lm_lora_prefplus.host.output.fuse.save_pretrained_merged", full)
    with pytest.raises(UserError, match="trained and saved in adapters, but .*138 bytes.*mlx_lm.fuse"):
        go(fuse=True)
    assert weights()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_testing_later_gives_the_same_figures(go, kind):
    together, _ = go(train_type=kind, test=True)
    config = Path("adapters/adapter_config.json").read_bytes()
    later, _ = go(train_type=kind, train=False, test=True, num_layers=1)
    pick = lambda out: re.sub(r"\x1b\[\d+m", "", out[out.index("Test Results:") :])  # noqa: E731
    assert pick(together).strip() == pick(later).strip()
    assert Path("adapters/adapter_config.json").read_bytes() == config


@pytest.mark.slow
def test_it_learns(go):
    """Ten pairs, forty epochs: the accuracy on them goes above 0.9."""
    _, seen = go(iters=None, epochs=40, batch_size=5, learning_rate=2e-3, steps_per_report=20, steps_per_eval=1000)
    assert seen.train[-1]["train_accuracies"] > 0.9
    assert seen.train[-1]["train_loss"] < 0.6 * math.log(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": False}, "Nothing to do. Give --train, --test or both"),
        ({"train": False, "test": True}, "adapter_path: there is no folder adapters to test"),
        ({"model": "data"}, r"model: the folder data contains no weights"),
        ({"adapter_path": "data/train.jsonl"}, "adapter_path: data/train.jsonl cannot be written"),
        ({"resume_adapter_file": "no.safetensors"}, "resume_adapter_file: there is no file no.safetensors"),
        ({"resume_adapter_file": "data"}, "resume_adapter_file: data is a folder. Name the file in it"),
        ({"resume_adapter_file": "data/train.jsonl", "data": "x"}, "data/train.jsonl cannot be read as safetensors"),
        ({"model": "./nowhere"}, "model: there is no folder ./nowhere. Give"),
        (
            {"data": "data/test.jsonl", "test": True},
            "no test rows in data/test.jsonl. Give a folder with test.jso",
        ),
        ({"reference_model_path": "./nowhere"}, "reference_model_path: ./nowhere does not exist"),
        ({"test": True, "test_batches": 0}, "test_batches is 0, so there is nothing to test"),
        ({"beta": 0}, "beta"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"loss_type": "sigmiod"}, "sigmoid"),
        ({"lora_parameters": {"keys": ["attention"]}}, "keys .'attention'. match no layer"),
    ],
    ids=str,
)
def test_refused_in_words_and_nothing_written(go, changes, message):
    with pytest.raises(UserError, match=message):
        go(**changes)
    assert not Path("adapters/adapters.safetensors").exists()


def test_wandb_is_looked_for_before_anything_is_loaded(go, monkeypatch, capsys):
    monkeypatch.setattr("mlx_lm_lora_prefplus.host.callbacks.loggers.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb: the package is not installed here: wandb. Install it"):
        go(wandb="project")
    assert "Loading model" not in capsys.readouterr().out


def test_existing_adapters_survive_a_bad_start(go):
    go()
    before = {path.name: path.read_bytes() for path in Path("adapters").iterdir()}
    Path("data/train.jsonl").write_text('{"prompt": "w1", "chosen": "w2"}\n')
    with pytest.raises(UserError, match="train.jsonl"):
        go(lora_parameters={"rank": 2})
    assert {path.name: path.read_bytes() for path in Path("adapters").iterdir()} == before


def test_a_loss_that_is_not_finite_stops_before_the_update(go):
    with pytest.raises(UserError, match=r"not finite at iteration \d+.*learning_rate"):
        go(train_type="full", learning_rate=1e20, iters=20)
    saved = [file for file in Path("adapters").glob("*.safetensors")]
    assert all(mx.isfinite(value).all() for file in saved for value in mx.load(str(file)).values())


def test_the_hosts_functions_called_one_by_one(go, model_folder, tmp_path):
    """A program that does what the host's `run` does, with the host's own `CacheDataset`."""
    from types import SimpleNamespace

    from mlx_lm_lora.trainer.datasets import CacheDataset

    args = SimpleNamespace(
        model=str(model_folder), data="data", train=True, test=True, train_mode="dpo", iters=2, batch_size=4, seed=0
    )
    model, tokenizer, adapter_file = host.from_pretrained(
        args.model, new_adapter_path="adapters", lora_config={"rank": 4, "num_layers": -1}
    )
    sets = [CacheDataset(rows) for rows in host.load_dataset(args, tokenizer)]
    recorder = Recorder()
    host.train_model(
        args, model, tokenizer, adapter_file, train_set=sets[0], valid_set=sets[1], training_callback=recorder
    )
    assert recorder.val[0]["val_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert adapter_file.is_file()
    host.evaluate_model(args, model, tokenizer, test_set=sets[2])
    with pytest.raises(UserError, match="train_set, item 0: chosen and rejected must begin with the same token"):
        host.train_model(args, model, tokenizer, adapter_file, train_set=[{"chosen": [1], "rejected": [2]}])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TMPDIR", "/nowhere/at-all", "TMPDIR names '/nowhere/at-all', which is not a folder.*unset TMPDIR"),
        ("MLX_LM_LORA_PREFPLUS_CACHE_SIZE", "lots", "_CACHE_SIZE: 'lots' is not a size"),
    ],
)
def test_what_the_environment_says_is_checked_before_anything_is_loaded(go, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("mlx_lm_lora_prefplus.host.run.run.load", None)
    with pytest.raises(UserError, match=message):
        go()
    assert not Path("adapters").exists()
