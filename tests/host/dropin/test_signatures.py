"""The host's functions as ours: their names, their signatures, and where they stand."""

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import mlx_lm_lora.trainer.dpo_trainer as dpo_trainer
import mlx_lm_lora.trainer.orpo_trainer as orpo_trainer
import pytest

from mlx_lm_lora_prefplus.host import dropin, originals
from mlx_lm_lora_prefplus.host.seam import install as activate
from tests.host.dropin.calls import MODULES
from tests.paths import ROOT

HOOK = Path(originals.__file__).parent / "startup" / "_mlx_lm_lora_prefplus_hook.py"


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
