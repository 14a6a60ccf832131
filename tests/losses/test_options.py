"""What a loss needs and takes stands once: in its row, or at the field of the mode."""

import inspect
from dataclasses import fields
from types import ModuleType

import pytest

from mlx_lm_lora_prefplus.losses import NLL_WEIGHTS, OPTIONS, Loss, LossOptions, mode_default
from mlx_lm_lora_prefplus.losses.formulas import absolute, pairs, policy_only, ranked, unpaired
from mlx_lm_lora_prefplus.trainers import DPO, PairedTrainer

FORMULAS = (absolute, pairs, policy_only, ranked, unpaired)
ROWS = [(mode, name, row) for mode, kind in OPTIONS.items() for name, row in kind.table.items()]


def functions(module: ModuleType):
    return [one for _, one in inspect.getmembers(module, inspect.isfunction) if one.__module__ == module.__name__]


def test_a_formula_has_no_defaults():
    """They stand at the field of the mode and in the row of the loss."""
    for module in FORMULAS:
        assert functions(module)
        for function in functions(module):
            assert not function.__kwdefaults__ and not function.__defaults__, function.__name__


def keys_of(options: type) -> set[str]:
    return {field.name for field in fields(options)}


@pytest.mark.parametrize("mode", OPTIONS)
def test_a_key_is_declared_again_only_for_another_default(mode):
    """A class that repeats a field of its base with the same default makes two places of one."""
    declared: dict[str, list[object]] = {}
    for base in OPTIONS[mode].__mro__:
        for key in vars(base).get("__annotations__", {}):
            if key in keys_of(OPTIONS[mode]):
                declared.setdefault(key, []).append((vars(base)[key], mode_default(base, key)))
    assert declared.keys() == keys_of(OPTIONS[mode])
    for key, defaults in declared.items():
        assert len(set(defaults)) == len(defaults), key


def test_modes_that_share_a_key_with_its_default_share_its_field():
    for key in set().union(*map(keys_of, OPTIONS.values())):
        places: dict[object, set[type]] = {}
        for kind in OPTIONS.values():
            owner = next((base for base in kind.__mro__ if key in vars(base).get("__annotations__", {})), None)
            if owner:
                places.setdefault((vars(owner)[key], mode_default(owner, key)), set()).add(owner)
        assert all(len(owners) == 1 for owners in places.values()), (key, places)


@pytest.mark.parametrize(("mode", "name", "row"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_row_holds_the_defaults_that_differ_and_keys_that_exist(mode, name, row):
    kind = OPTIONS[mode]
    defaults = {field.name: field.default for field in fields(kind)}
    assert {*row.options, *row.instead, *row.defaults} <= set(defaults)
    known = {*row.options, NLL_WEIGHTS.get(mode)}
    assert set(row.defaults) <= known, "a default of a key that the loss does not take"
    for key, default in row.defaults.items():
        assert defaults[key] is None, f"{key} is never None, so that the default of {name} is never taken"
        assert default != mode_default(kind, key), f"{key} {default} stands in row {name} and at the field"


def test_the_options_of_a_mode_name_no_loss():
    """A rule of one loss stands in its row, where losses of other packages have theirs."""
    names = {name for _, name, _ in ROWS}
    for kind in OPTIONS.values():
        for base in kind.__mro__:
            for member in vars(base).values():
                code = getattr(member, "__code__", None)
                if code and base.__module__.startswith("mlx_lm_lora_prefplus"):
                    assert names.isdisjoint(constants(code)), (base.__name__, code.co_name)


def constants(code) -> set[object]:
    """The constants of a function, and of those within."""
    nested = [one for one in code.co_consts if inspect.iscode(one)]
    return {one for one in code.co_consts if isinstance(one, str)}.union(*map(constants, nested))


def test_rows_whose_rules_the_options_could_not_apply_are_refused():
    """Else a default or a check of a row would be passed over in silence."""
    row = Loss(pairs.hinge, ("beta",), check=lambda options: "never")
    with pytest.raises(ValueError, match="Set `table` of LossOptions to the losses of the mode"):
        PairedTrainer("other", LossOptions, {"hinge": row}, reference=True)
    assert PairedTrainer("other", LossOptions, {"hinge": Loss(pairs.hinge, ("beta",))}, reference=True).losses
    assert DPO.options.table == DPO.losses
