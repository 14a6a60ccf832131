"""The host's functions in our modes, with the sets that its own classes make, as MLX-LoRA-Studio calls them."""

import math
import re
from types import SimpleNamespace

import mlx.core as mx
import mlx.optimizers as optim
import mlx_lm_lora.train as host
import pytest
from datasets import Dataset
from mlx_lm_lora.trainer.datasets import CacheDataset, create_dataset

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import dropin, models
from mlx_lm_lora_prefplus.host.dropin.settings import VARIABLE
from mlx_lm_lora_prefplus.host.seam import functions
from tests.conftest import WORDS, write_pairs


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    write_pairs(tmp_path / "data", train=8, test=6)


def arguments(model_folder, **given):
    """What the app passes: the host's defaults and its own form over them."""
    own = {"model": str(model_folder), "data": "data", "train": True, "test": True, "batch_size": 2, "test_batches": -1}
    return SimpleNamespace(**{**host.CONFIG_DEFAULTS, "adapter_path": "adapters", **own, **given})


def loaded(args, full=False):
    lora = None if full else {"rank": 4, "num_layers": -1}
    return host.from_pretrained(args.model, new_adapter_path="adapters", lora_config=lora)[:2]


def host_set(args, tokenizer):
    """Pairs as the host's own class holds them."""
    pairs = [{"prompt": WORDS[i], "chosen": WORDS[20 + i], "rejected": WORDS[30 + i]} for i in range(6)]
    return CacheDataset(create_dataset(pairs, tokenizer, args))


def figures(capsys):
    """The figures of the block that the host's `evaluate_model` prints, by name."""
    out = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    block = out[out.index("Test Results:") :]
    assert re.search(r"Rewards: -?\d+\.\d+, -?\d+\.\d+", block)
    return {name.lower(): float(value) for name, value in re.findall(r"  (\w+): (-?[\d.]+)$", block, re.MULTILINE)}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dpo", "cpo", "orpo"])
@pytest.mark.parametrize("kind", ["host", "ours"])
def test_a_set_of_the_hosts_classes_is_evaluated_as_ours_is(mode, kind, model_folder, capsys):
    args = arguments(model_folder, train_mode=mode)
    model, tokenizer = loaded(args)
    given = host_set(args, tokenizer) if kind == "host" else CacheDataset(functions.load_dataset(args, tokenizer)[2])
    functions.evaluate_model(args, model, tokenizer, test_set=given)
    found = figures(capsys)
    evaluate = getattr(dropin, f"evaluate_{mode}")
    named = {"batch_size": 2, "num_batches": -1, "beta": 0.1, "max_seq_length": args.max_seq_length}
    named |= {} if mode == "orpo" else {"delta": 50.0, "loss_type": "sigmoid"}
    named |= {"ref_model": None} if mode == "dpo" else {}
    expected = evaluate(model=model, dataset=given, **named)
    assert found["loss"] == pytest.approx(expected[0], abs=1e-3)
    if mode == "dpo":
        assert found["loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_the_pairs_of_load_dataset_are_items_in_the_hosts_form(model_folder):
    args = arguments(model_folder, train_mode="dpo")
    tokenizer = loaded(args)[1]
    pairs, valid, _ = functions.load_dataset(args, tokenizer)
    assert len(valid) == 0
    item, row = CacheDataset(pairs)[1], pairs.rows[1]
    assert item["chosen"] == [*row["prompt"], *row["chosen"]]
    assert item["rejected"] == [*row["prompt"], *row["rejected"]]
    assert item["chosen_prompt_length"] == item["rejected_prompt_length"] == len(row["prompt"])
    assert "8 of 8 from " in pairs.rows.description


def test_a_model_without_adapters_is_compared_with_the_one_that_was_loaded(model_folder, capsys):
    """After full fine-tuning the model itself is no reference: it would say ln 2 whatever was learnt."""
    args = arguments(model_folder, train_mode="dpo", train_type="full")
    model, tokenizer = loaded(args, full=True)
    sets = [CacheDataset(rows) for rows in functions.load_dataset(args, tokenizer)]
    functions.evaluate_model(args, model, tokenizer, test_set=sets[2])
    assert figures(capsys)["loss"] == pytest.approx(math.log(2), abs=1e-3)
    model.update({"lm_head": {"weight": model.lm_head.weight + 0.1 * mx.random.normal(model.lm_head.weight.shape)}})
    functions.evaluate_model(args, model, tokenizer, test_set=sets[2])
    assert figures(capsys)["loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_the_options_that_training_read_from_a_file_hold_for_the_test_too(model_folder, capsys, tmp_path, monkeypatch):
    args = arguments(model_folder, train_mode="cpo")
    model, tokenizer = loaded(args)
    given = host_set(args, tokenizer)
    functions.evaluate_model(args, model, tokenizer, test_set=given)
    plain = figures(capsys)["loss"]
    (tmp_path / "options.yaml").write_text("loss_type: simpo\n")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "options.yaml"))
    functions.evaluate_model(args, model, tokenizer, test_set=given)
    simpo = figures(capsys)["loss"]
    validated = []
    callback = SimpleNamespace(on_val_loss_report=validated.append, on_train_loss_report=lambda info: None)
    form = dropin.CPOTrainingArgs(iters=1, batch_size=2, val_batches=-1, adapter_file=None)
    dropin.train_cpo(model, optim.SGD(1e-3), given, given, form, training_callback=callback)
    assert simpo == pytest.approx(validated[0]["val_loss"], abs=1e-3) and simpo != pytest.approx(plain, abs=1e-2)


@pytest.mark.parametrize("wrap", [CacheDataset, lambda rows: rows])
def test_single_completions_of_our_load_dataset(wrap, model_folder, capsys):
    args = arguments(model_folder, train_mode="kto")
    model, tokenizer = loaded(args)
    functions.evaluate_model(args, model, tokenizer, test_set=wrap(functions.load_dataset(args, tokenizer)[2]))
    assert figures(capsys)["loss"] == pytest.approx(0.5, abs=1e-3)


def test_single_completions_must_come_from_our_load_dataset(model_folder):
    args = arguments(model_folder, train_mode="kto")
    model, tokenizer = loaded(args)
    with pytest.raises(UserError, match="test_set is a list; in mode kto it must come from load_dataset"):
        functions.evaluate_model(args, model, tokenizer, test_set=[{"chosen": [1], "rejected": [2]}])
    text = Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}])
    for given in (text, CacheDataset(text)):
        with pytest.raises(UserError, match="test_set is a .*; in mode kto it must come from load_dataset"):
            functions.evaluate_model(args, model, tokenizer, test_set=given)


@pytest.mark.parametrize("function", ["train_model", "evaluate_model"])
def test_memory_is_bounded_for_a_model_that_the_caller_loaded(function, model_folder, monkeypatch):
    class Bounded(Exception):
        pass

    def bounded(model, settings):
        raise Bounded

    monkeypatch.setattr(models, "make_ready", bounded)
    more = ("adapters/adapters.safetensors",) if function == "train_model" else ()
    with pytest.raises(Bounded):
        getattr(functions, function)(arguments(model_folder, train_mode="dpo"), None, None, *more)
