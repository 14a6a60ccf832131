"""Every optimiser of MLX: by name in a config, and as an object of the caller's."""

import inspect
from types import SimpleNamespace
from typing import get_args

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from mlx_lm_lora_prefplus.engine.model.eight_bit import STATES
from mlx_lm_lora_prefplus.engine.rate import learning_rate
from mlx_lm_lora_prefplus.host import dropin
from mlx_lm_lora_prefplus.host.config.checks.optimizers import build_optimizer, optimizer_class
from mlx_lm_lora_prefplus.host.config.flags import mode_parser
from mlx_lm_lora_prefplus.settings import Optimizer, RunSettings
from tests.conftest import random_rows, tiny_llama, with_lora
from tests.host.dropin.calls import Items, Recorder, host_items, same, weights

NAMES = get_args(Optimizer)


def test_every_optimiser_of_mlx_has_its_name():
    classes = {
        name.lower() for name, one in vars(optim).items() if inspect.isclass(one) and issubclass(one, optim.Optimizer)
    }
    assert classes - {"optimizer", "multioptimizer"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_that_names_it_gets_it_at_the_rate_that_it_gives(name, run_config):
    settings = run_config({"optimizer": name, "learning_rate": 3e-4}).settings
    built = build_optimizer(settings)
    assert type(built) is optimizer_class(name)
    assert learning_rate(built) == pytest.approx(3e-4)
    value, before = {"w": mx.ones((2, 2))}, mx.ones((2, 2))
    after = built.apply_gradients({"w": mx.ones((2, 2))}, value)["w"]
    assert 0 < mx.abs(after - before).max().item() < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_takes_it(name, host, registry):
    parsed = mode_parser(host.build_parser.__wrapped__(), registry["dpo"]).parse_args(["--optimizer", name])
    assert parsed.optimizer == name


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"sgd": {"momentum": 0.9, "nesterov": True}}, None),
        ({"sgd": {"nesterov": True}}, "sgd: Nesterov momentum requires a momentum and zero dampening"),
        ({"adafactor": {"decay_rate": -0.7, "beta_1": 0.9, "eps": [1e-30, 1e-3], "relative_step": True}}, None),
        ({"adafactor": {"decay_rate": 0.7}}, "decay_rate must be a number from -10 to 0, not 0.7"),
        ({"rmsprop": {"alpha": 0.9, "epsilon": 1e-8}}, "rmsprop has an unknown argument epsilon"),
        ({"lion": {"betas": [0.9]}}, r"betas must be 2 numbers in \[0, 1\)"),
    ],
    ids=str,
)
def test_the_arguments_of_each_are_checked(config, told, run_config, request):
    given = {"optimizer": next(iter(config)), "optimizer_config": config}
    if told is None:
        build_optimizer(run_config(given).settings)
    else:
        with pytest.raises(ValueError, match=told):
            run_config(given)


@pytest.mark.parametrize("name", NAMES)
def test_moments_in_8_bits_are_built_or_refused_with_the_reason(name, run_config):
    given = {"optimizer": name, "optimizer_bits": 8}
    if optimizer_class(name) in STATES:
        built = build_optimizer(run_config(given).settings)
        built.init({"w": mx.zeros((64, 64))})
        assert {value["codes"].dtype for value in built.state["w"].values()} == {mx.uint8}
    else:
        message = f"optimizer_bits: 8 .* is not available with optimizer {name}, which .* Use 32, or one of: .*adamw"
        with pytest.raises(ValueError, match=message):
            run_config(given)


@pytest.mark.parametrize("bits", [4, 16, "eight", True])
def test_other_numbers_of_bits_are_refused(bits, run_config):
    with pytest.raises(ValueError, match="optimizer_bits: .* must be 8 or 32\\."):
        run_config({"optimizer_bits": bits})


def test_a_flag_whose_values_are_numbers_gives_a_number(host, registry):
    parsed = mode_parser(host.build_parser.__wrapped__(), registry["dpo"]).parse_args(["--optimizer-bits", "8"])
    assert parsed.optimizer_bits == 8


def test_adafactor_may_set_its_own_rate():
    settings = RunSettings(optimizer="adafactor", optimizer_config={"adafactor": {"relative_step": True}})
    assert learning_rate(build_optimizer(settings)) == pytest.approx(1e-2)
    assert learning_rate(optim.Adafactor(warmup_init=True)) == pytest.approx(1e-6)


OBJECTS = {
    **{name: optimizer_class(name) for name in NAMES},
    "adafactor without a rate": lambda learning_rate: optim.Adafactor(),
    "several": lambda learning_rate: optim.MultiOptimizer(
        [optim.Muon(learning_rate), optim.SGD(learning_rate)], [lambda name, value: "lora_a" in name]
    ),
    "scheduled": lambda learning_rate: optim.Lion(optim.cosine_decay(learning_rate, 10)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTS)
def test_an_optimiser_of_the_callers_trains_and_reports_its_rate(name, tmp_path, capsys):
    model, seen = with_lora(tiny_llama(), moved=False), Recorder()
    before = weights(model)
    rows = Items(host_items(random_rows(4)))
    form = {"iters": 4, "batch_size": 2, "steps_per_report": 1, "steps_per_save": 2}
    args = dropin.CPOTrainingArgs(**form, adapter_file=str(tmp_path / "adapters.safetensors"))
    dropin.train_cpo(model, OBJECTS[name](learning_rate=1e-3), rows, rows, args, training_callback=seen)
    assert not same(before, weights(model), atol=0)
    assert all(0 < one["learning_rate"] <= 1e-2 for one in seen.train) and len(seen.train) == 4
    assert (tmp_path / "0000002_adapters.safetensors").is_file()
    assert ("sets its own learning rate" in capsys.readouterr().out) is (name == "adafactor")


def test_an_optimiser_goes_on_in_a_second_call():
    """The host's notebooks pass one object to several trainers."""
    model, optimizer = with_lora(tiny_llama(), moved=False), optim.AdamW(1e-3)
    rows = Items(host_items(random_rows(4)))
    callback = SimpleNamespace(on_train_loss_report=lambda info: None, on_val_loss_report=lambda info: None)
    for train, kind in ((dropin.train_cpo, dropin.CPOTrainingArgs), (dropin.train_orpo, dropin.ORPOTrainingArgs)):
        form = kind(iters=2, batch_size=2, adapter_file=None)
        train(model, optimizer, rows, args=form, training_callback=callback)
    assert optimizer.step.item() == 4
