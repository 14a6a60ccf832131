"""What a key is stands at its field, and every list of keys is made from that."""

import inspect
import re

import mlx_lm_lora.train as host
from mlx_lm_lora.trainer import datasets

from mlx_lm_lora_prefplus.host import originals
from mlx_lm_lora_prefplus.host.config.flags import mode_parser
from mlx_lm_lora_prefplus.host.config.resolve import WITHOUT_EFFECT_ON_RESULTS
from mlx_lm_lora_prefplus.host.dropin.settings import MORE
from mlx_lm_lora_prefplus.plugin.installed import registry
from mlx_lm_lora_prefplus.settings import (
    COLUMNS,
    COLUMNS_OF_OTHERS,
    FIELDS,
    FUNCTIONS,
    OURS,
    OWN_KEYS,
    Effect,
    keys_with,
)


def test_every_key_says_what_it_does_to_the_result():
    effects = {key: [mark for mark in field.metadata if isinstance(mark, Effect)] for key, field in FIELDS.items()}
    wrong = [key for key, marks in effects.items() if len(marks) != 1]
    assert effects and not wrong, "mark each in settings/ with one Effect"


def columns_of_the_host() -> set[str]:
    """Keys of config files that the host reads where it makes its data sets, without a flag or a default."""
    return set(re.findall(r'"(\w+_feature)"', inspect.getsource(datasets)))


def test_every_key_of_a_column_says_whose_column_it_is():
    assert set(COLUMNS) == {key for key in FIELDS if key.endswith("_feature")}, "mark the key with a Column"
    assert all(column.formats for column in COLUMNS.values())


def test_columns_that_the_host_reads_are_known_to_a_mode_or_as_another_modes():
    ours = set(COLUMNS) - set(OWN_KEYS)
    assert ours.isdisjoint(COLUMNS_OF_OTHERS)
    assert columns_of_the_host() == ours | set(COLUMNS_OF_OTHERS)


def host_parser():
    return (originals.originals_of(host)["build_parser"] if originals.is_active(host) else host.build_parser)()


def test_a_default_of_the_host_is_the_hosts():
    """Where it stands here a second time, it is the same.

    Apart from `train_mode`: the host's is none of our modes. Its `optimizer_config` has an empty mapping for each name.
    """
    of_parser = {action.dest: action.default for action in host_parser()._actions}
    theirs = {**{key: value for key, value in of_parser.items() if value is not None}, **host.CONFIG_DEFAULTS}
    assert not any(theirs.pop("optimizer_config").values()) and theirs.pop("train_mode") not in registry()
    ours = {key: FIELDS[key].get_default(call_default_factory=True) for key in set(FIELDS) & set(theirs)}
    assert len(ours) > 30
    assert {key: value for key, value in ours.items() if value != theirs[key]} == {}


def test_every_key_has_a_flag():
    for mode in registry():
        parser = mode_parser(host_parser(), registry()[mode], registry())
        assert set(FIELDS) - {action.dest for action in parser._actions} == set(), mode


def test_our_keys_are_those_that_the_host_does_not_have():
    flags = {action.dest for action in host_parser()._actions}
    of_host = {*host.CONFIG_DEFAULTS, *flags, *columns_of_the_host(), "hf_dataset"}
    assert set(OWN_KEYS).isdisjoint(of_host)
    assert set(FIELDS) - of_host == set(OWN_KEYS)


def test_keys_that_change_the_arithmetic_are_compared_by_resume():
    decides = set(keys_with(Effect.DECIDES))
    assert {
        "max_grad_norm",
        "learning_rate",
        "seed",
        "batch_size",
        "token_budget",
        "optimizer",
        "truncation",
    } <= decides
    assert decides.isdisjoint(WITHOUT_EFFECT_ON_RESULTS)
    assert {"iters", "epochs", "adapter_path"}.isdisjoint(decides), "a run that goes on may have others"


def test_the_functions_in_the_hosts_place_take_what_their_arguments_lack():
    assert set(MORE) == set(keys_with(FUNCTIONS)) >= {"save_best", "max_grad_norm", "seed", "on_nonfinite"}
    assert all(key == "seed" or OURS in FIELDS[key].metadata for key in MORE)
