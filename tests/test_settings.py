"""What a key is stands at its field, and every list of keys is made from that."""

import mlx_lm_lora.train as host

from mlx_lm_lora_prefplus.host import originals
from mlx_lm_lora_prefplus.host.config.resolve import WITHOUT_EFFECT_ON_RESULTS
from mlx_lm_lora_prefplus.host.dropin.settings import MORE
from mlx_lm_lora_prefplus.settings import FIELDS, FUNCTIONS, OURS, OWN_KEYS, Effect, keys_with


def test_every_key_says_what_it_does_to_the_result():
    effects = {key: [mark for mark in field.metadata if isinstance(mark, Effect)] for key, field in FIELDS.items()}
    wrong = [key for key, marks in effects.items() if len(marks) != 1]
    assert effects and not wrong, "mark each in settings.py with one Effect"


OF_DATA_SETS = {
    *("hf_dataset", "prompt_feature", "chosen_feature", "rejected_feature", "system_feature", "completion_feature"),
    "preference_score_feature",
}
"""Keys of config files that the host reads where it makes its data sets, without a flag or a default."""


def test_our_keys_are_those_that_the_host_does_not_have():
    build_parser = originals.originals_of(host)["build_parser"] if originals.is_active(host) else host.build_parser
    of_host = {*host.CONFIG_DEFAULTS, *(action.dest for action in build_parser()._actions), *OF_DATA_SETS}
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
