"""The registry: who brings which mode, and what becomes of plugins that are broken."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from mlx_lm_lora_prefplus import __version__
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.plugin import Trainer, hookimpl, manager
from mlx_lm_lora_prefplus.plugin.manager import MEMBERS, load_registry
from mlx_lm_lora_prefplus.trainers import DPO

OWN = f"mlx-lm-lora-prefplus {__version__}"


def called(policy, batch, options, state):
    """Stands for every member that is a function."""


def trainer(mode="kto", **changes):
    return SimpleNamespace(**{**dict.fromkeys(MEMBERS, called), "mode": mode, "options": DPO.options, **changes})


@dataclass
class Unreadable:
    """Options whose types cannot be read."""

    key: "NotThere" = None  # noqa: F821


class FakeEntry:
    """An entry point of a distribution that is not installed."""

    def __init__(self, provider, brings, name="prefs"):
        dist_name, version = provider.split()
        self.dist = SimpleNamespace(name=dist_name, version=version)
        self.name, self.value = name, f"{dist_name}:plugin"
        self.brings = brings

    def load(self):
        if not isinstance(self.brings, list):
            return self.brings()
        trainers = self.brings

        class Plugin:
            @hookimpl
            def mlx_lm_lora_register_trainers(self):
                return trainers

        return Plugin()


@pytest.fixture
def installed(monkeypatch):
    """Our own entry point and others."""

    def registry(*entries, own=True):
        ours = FakeEntry(OWN, [trainer("cpo"), trainer("dpo")])
        monkeypatch.setattr(manager, "entry_points", lambda group: [*([ours] if own else []), *entries])
        return load_registry()

    return registry


def test_members_are_the_protocols():
    assert set(MEMBERS) == {
        *("mode", "rows", "options", "losses", "defaults", "rows_of", "needs_reference", "needs_mismatched"),
        *("collate", "with_losses", "token_weights", "reference_key", "separable", "initial_state", "loss", "rewards"),
        "evaluate",
    }
    assert isinstance(DPO, Trainer)


def test_our_own_modes():
    registry = load_registry()
    assert registry["dpo"].provider == registry["cpo"].provider == OWN
    assert registry["dpo"].trainer is DPO
    assert registry.broken.get(OWN) is None


def test_our_modes_are_there_when_run_from_a_folder(monkeypatch):
    monkeypatch.setattr(manager, "entry_points", lambda group: [])
    assert set(load_registry()) == {"cpo", "dpo", "orpo", "simpo", "kto", "bco"}
    assert isinstance(manager.OWN_ENTRY_POINT, EntryPoint)


def test_a_third_party_brings_a_mode(installed):
    theirs = trainer("kto")
    registry = installed(FakeEntry("kto-plugin 2.0", [theirs]))
    assert registry["kto"] == (theirs, "kto-plugin 2.0")
    assert list(registry) == ["cpo", "dpo", "kto"]
    assert "kto" in registry and "sft" not in registry
    with pytest.raises(KeyError):
        registry["sft"]


def fails_to_import():
    raise ImportError("no module named torch")


def leaves():
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("brings", "said"),
    [
        (fails_to_import, "bad:plugin: ImportError: no module named torch"),
        (leaves, "bad:plugin: SystemExit: 3"),
        (object, "it has no function mlx_lm_lora_register_trainers"),
        ([SimpleNamespace(mode="kto", rows="paired")], "it lacks options, losses, defaults, rows_of"),
        ([SimpleNamespace(mode="kto", rows="paired")], "Inherit from mlx_lm_lora_prefplus.trainers.BaseTrainer"),
        (
            [trainer("kto", iterate_batches=None)],
            "iterate_batches is no longer called: trainers no longer plan batches",
        ),
        ([trainer("kto", mismatched=True)], "mismatched is no longer called: define needs_mismatched(options)"),
        ([trainer("kto", weights=None)], "weights is no longer called: it is now named token_weights"),
        ([trainer("kto", loss=lambda policy, batch, options: None)], "loss must take (policy, batch, options, state)"),
        ([trainer("KTO plus")], "the mode 'KTO plus' must consist of"),
        ([trainer("mine", options=dict)], "the options of mode mine are <class 'dict'>, which is not a dataclass"),
        ([trainer("mine", options=None)], "the options of mode mine are None, which is not a dataclass"),
        ([trainer("mine", options=Unreadable)], "NameError: name 'NotThere' is not defined"),
        ([trainer(None)], "the mode None must consist of"),
        ([trainer("sft")], "the mode sft belongs to mlx-lm-lora. Choose another name"),
        ([trainer("dpo")], "the mode dpo belongs to mlx-lm-lora. Choose another name"),
        ([trainer("kto"), trainer("grpo")], "the mode grpo belongs to mlx-lm-lora"),
    ],
)
def test_a_broken_plugin_is_named_and_the_others_stay(installed, brings, said):
    registry = installed(FakeEntry("bad 0.1", brings), FakeEntry("good 1.0", [trainer("simpo")]))
    assert said in registry.broken["bad 0.1"]
    assert list(registry) == ["cpo", "dpo", "simpo"]


def test_a_hook_that_raises(installed):
    class Plugin:
        @hookimpl
        def mlx_lm_lora_register_trainers(self):
            raise ValueError("no such thing")

    assert "ValueError: no such thing" in installed(FakeEntry("bad 0.1", Plugin)).broken["bad 0.1"]


def test_a_hook_with_other_parameters(installed):
    class Plugin:
        @hookimpl
        def mlx_lm_lora_register_trainers(self, config):
            return []

    assert "config" in installed(FakeEntry("bad 0.1", Plugin)).broken["bad 0.1"]


def test_two_providers_of_one_mode_are_an_error_that_names_both(installed):
    registry = installed(FakeEntry("one 1.0", [trainer("kto")]), FakeEntry("two 2.0", [trainer("kto")]))
    assert "kto" in registry
    with pytest.raises(UserError, match=r"kto is provided by one 1\.0 and by two 2\.0"):
        registry["kto"]
    assert registry["dpo"].provider == OWN


def test_an_error_in_a_trainer_names_its_package(installed):
    registry = installed(FakeEntry("one 1.0", [trainer("kto")]))
    with pytest.raises(ZeroDivisionError) as caught, registry.naming_provider("kto"):
        raise ZeroDivisionError("in its code")
    assert caught.value.__notes__ == [
        "Mode kto is run by one 1.0. If the error is in its code, report it to its authors."
    ]
    with pytest.raises(UserError) as caught, registry.naming_provider("kto"):
        raise UserError("the user's")
    assert not hasattr(caught.value, "__notes__")


def test_one_distribution_found_twice_counts_once(installed):
    twice = [FakeEntry(provider, [trainer("kto")]) for provider in ("kto-plugin 2.0", "Kto_Plugin 2.0")]
    twice[1].value = twice[0].value
    registry = installed(*twice, FakeEntry(OWN, [trainer("cpo"), trainer("dpo")]))
    assert registry["kto"].provider == "kto-plugin 2.0"
    assert registry.rivals == {}


def test_loading_does_not_import_the_host():
    code = (
        "import sys, mlx_lm_lora_prefplus.plugin.manager as m; m.load_registry(); print('mlx_lm_lora' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_package_that_hangs_while_it_is_imported_is_named(installed, monkeypatch, capsys):
    monkeypatch.setattr(manager, "SLOW_IMPORT", 0.01)
    printed = threading.Event()

    def slow():
        for _ in range(500):
            time.sleep(0.01)
            if "Still importing slow-prefs 1.0" in capsys.readouterr().err:
                printed.set()
                break
        raise ImportError("at last")

    assert "slow-prefs 1.0" in installed(FakeEntry("slow-prefs 1.0", slow)).broken
    assert printed.is_set()
