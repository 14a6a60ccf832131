"""What is refused, in which words, and that all of it is said at once."""

import pytest


def test_every_error_at_once(refused):
    message = refused(
        {"batch_size": 0, "load_in_4bits": True, "load_in_8bits": True},
        {
            **{"loss_type": "sigmoyd", "learning_rate": -1, "beta": 0, "label_smoothing": 0.7, "truncation": "middle"},
            **{"lora_parameters": {"rank": 0}, "lr_schedule": {"name": "cosine"}, "optimizer": "sgdm"},
            **{"optimizer_config": {"adamW": {}}, "max_seq_length": "long"},
        },
    )
    assert message.startswith("These 12 settings cannot work:")
    for part in (
        "batch_size: 0 (command line) must be greater than 0",
        "load_in_4bits and load_in_8bits (command line) exclude one another",
        "run.yaml) is not a loss of mode dpo; did you mean sigmoid? Choose from: sigmoid, hinge, ipo, dpop",
        "learning_rate: -1 (config ",
        "beta: 0 (config ",
        "label_smoothing: 0.7 (config ",
        "must be less than 0.5",
        "must be 'keep_end', 'keep_start', 'keep_prompt' or 'drop'",
        "rank must be a whole number from 1 to 65536, not 0",
        "needs a name that is one of cosine_decay, exponential_decay, linear_schedule, step_decay",
        "optimizer: 'sgdm' (config ",
        "has an unknown optimizer adamW; did you mean adamw?",
        "max_seq_length: 'long' (config ",
    ):
        assert part in message, part


def test_one_error_is_said_in_the_singular(refused):
    assert refused({"iters": 0}) == ("This setting cannot work:\n  - iters: 0 (command line) must be greater than 0.")


def test_options_of_a_third_party_are_checked_too(refused):
    message = refused({"sft_kind": "c", "weights": [1, "x"], "savers": 0}, mode="fancy")
    assert "sft_kind: 'c' (command line) must be 'a' or 'b'" in message
    assert "weights: [1, 'x'] (command line) [1] must be a number" in message
    assert "savers: 0 (command line) must be greater than or equal to 1" in message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"beta": True}, "beta: True (command line) must not be true or false"),
        ({"loss_weights": [True]}, "loss_weights: [True] (command line) must not be true or false"),
        ({"loss_type": b"ipo"}, "loss_type: b'ipo' (command line) must be text, not bytes"),
        ({"iters": 10**400}, "iters: a number of more than 200 digits (command line) must be less than"),
        ({"optimizer": ["adam"]}, "must be 'sgd', 'rmsprop'"),
        ({"resume": "maybe"}, "resume: 'maybe' (command line) must be true or false or 'force'"),
        ({"num_layers": 0}, "must be a positive number of layers, counted from the last, or -1 for all layers"),
        ({"num_layers": -7}, "or -1 for all layers"),
        ({"lora_parameters": {"rank": 10**11}}, "rank must be a whole number from 1 to 65536, not 100000000000"),
        ({"lora_parameters": {"rank": "8"}}, "rank must be a whole number from 1 to 65536, not '8'"),
        ({"lora_parameters": {"rank": -1}}, "rank must be a whole number from 1 to 65536, not -1"),
        ({"lora_parameters": {"rnak": 8}}, "has an unknown key rnak; did you mean rank?"),
        ({"optimizer_config": {"adam": {"betas": [0.9]}}}, "adam: betas must be 2 numbers in [0, 1), not [0.9]"),
        ({"optimizer_config": {"adam": {"eps": "x"}}}, "adam: eps must be a finite number, 0 or more, not 'x'"),
        ({"optimizer_config": {"adam": {"bias_correction": 1}}}, "bias_correction must be true or false, not 1"),
        (
            {"optimizer": "muon", "optimizer_config": {"muon": {"ns_steps": 0}}},
            "muon: ns_steps must be a whole number from 1 to 1000, not 0",
        ),
        ({"lr_schedule": {"name": "cosine_decay", "arguments": [1e-3, 0]}}, "decay_steps must be greater than 0"),
        ({"lr_schedule": {"name": "exponential_decay", "arguments": [1.0, -5]}}, "the learning rate -5.0 at update 1"),
        ({"lr_schedule": {"name": ["cosine_decay"], "arguments": [1]}}, "needs a name that is one of"),
        ({"adapter_path": "a\0b"}, "must contain no control character"),
        ({"lm_studio_name": "../../elsewhere"}, "must be a plain name without .. or a leading /"),
        ({"lm_studio_name": "/elsewhere"}, "must be a plain name without .. or a leading /"),
    ],
    ids=str,
)
def test_what_would_be_read_as_something_else_or_fail_later(refused, given, said):
    assert said in refused(given)


def test_a_long_value_is_shown_in_part(refused):
    message = refused({"optimizer": "x" * 10_000})
    assert "x" * 150 + "x" in message and len(message) < 500


@pytest.mark.parametrize("mode", [["dpo"], {"a": 1}, b"dpo", 3])
def test_a_mode_that_is_no_name(refused, mode):
    assert "is not a mode of an installed plugin" in refused(mode=mode)


# options of other losses


def test_a_key_of_the_host_that_the_loss_does_not_use_is_a_note(run_config):
    assert run_config({"delta": 5.0}).notes == ("delta is not used by loss_type sigmoid",)
    assert run_config({"delta": 5.0, "loss_type": "dpop"}).notes == ()


def test_an_option_that_the_loss_does_not_use_is_an_error(run_config, refused):
    message = refused({"tau": 0.9}, mode="fancy")
    assert "tau: 0.9 (command line) is not used by loss_type plain; it belongs to curved" in message
    assert run_config({"tau": 0.9, "loss_type": "curved"}, mode="fancy").options.tau == 0.9
    assert run_config({"tau": 0.5}, mode="fancy").notes == ()


def test_an_option_of_another_mode_is_an_error(run_config, refused):
    message = refused({"tau": 0.9, "sft_weight": 0.0})
    assert message.endswith(
        "tau: 0.9 (command line) is not a key of mode dpo; it belongs to train_mode fancy (loss_type curved)."
    )
    notes = run_config({"tau": 0.5}).notes
    assert notes == ("tau (command line) is not a key of this mode and is ignored.",), "its default is no wish"


def test_keys_of_the_hosts_other_modes_are_named_once(run_config):
    given = {"group_size": 2, "epsilon": 0.3, "temperature": 0.8, "delta": 7.0, "judge": None}
    assert run_config(file=given, mode="fancy").notes == (
        "not used in mode fancy: delta, epsilon, group_size (of mlx-lm-lora)",
    )


@pytest.mark.parametrize("value", [{}, 1, [None], ["sigmoid", 1], [["sigmoid"]]])
def test_a_name_of_a_loss_that_is_no_name(refused, value):
    message = refused({"loss_type": value})
    assert message.startswith("This setting cannot work:") and "loss_type: " in message


def test_capitals_and_blanks_in_the_name_of_a_loss(refused):
    assert "did you mean sigmoid?" in refused({"loss_type": " SIGMOID "})


def test_options_of_no_loss_belong_to_the_mode(run_config):
    assert run_config({"reference_free": True, "sft_weight": 0.5}).options.reference_free


def test_several_losses_at_once(run_config, refused):
    resolved = run_config({"loss_type": ["plain", "curved"], "tau": 0.9}, mode="fancy")
    assert resolved.options.loss_type == ["plain", "curved"]
    assert "'curvy' (command line) is not a loss" in refused({"loss_type": ["plain", "curvy"]}, mode="fancy")


# nested keys


def test_lora_parameters_are_completed(run_config):
    resolved = run_config(file={"lora_parameters": {"rank": 16}})
    assert resolved.settings.lora_parameters == {"rank": 16, "dropout": 0.0, "scale": 10.0}
    assert resolved.values["lora_parameters"] == resolved.settings.lora_parameters


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"rank": 16, "alpha": 32}, "Set scale, which is alpha / rank; here 32 / 16 = 2"),
        ({"ranks": 16}, "has an unknown key ranks; did you mean rank? Known: rank, dropout, scale, keys"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, not 1.0"),
        ({"scale": float("nan")}, "scale must be a finite number, not nan"),
        ({"rank": True}, "rank must be a whole number"),
        ({"keys": "q_proj"}, "keys must be a list of module names"),
        ([8], "must be a mapping, for example {"),
    ],
)
def test_lora_parameters(refused, value, said):
    assert said in refused({"lora_parameters": value})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"name": "cosine_decai", "arguments": [1e-5, 10]}, "did you mean cosine_decay?"),
        ({"name": "join_schedules", "arguments": [1]}, "needs a name"),
        ({"arguments": [1e-5, 10]}, "needs a name"),
        ({"name": "cosine_decay"}, "needs arguments, a list of numbers: init, decay_steps, end"),
        ({"name": "cosine_decay", "arguments": ["1e-5", 10]}, "needs arguments, a list of numbers"),
        ({"name": "cosine_decay", "arguments": [1e-5]}, "has 1 argument; cosine_decay takes init, decay_steps, end"),
        ({"name": "step_decay", "arguments": [1, 1, 1], "warmups": 3}, "unknown key warmups; did you mean warmup?"),
        ({"name": "step_decay", "arguments": [1, 1, 1], "warmup": "ten"}, "warmup must be a number of optimiser steps"),
        ({"name": "step_decay", "arguments": [1, 1, 1], "warmup_init": "x"}, "warmup_init must be a learning rate"),
        ("cosine_decay", "must be a mapping, for example {"),
    ],
)
def test_lr_schedule(refused, value, said):
    assert said in refused({"lr_schedule": value})


def test_a_good_lr_schedule(run_config):
    value = {"name": "cosine_decay", "arguments": [1e-5, 100, 1e-7], "warmup": 10}
    assert run_config({"lr_schedule": value}).settings.lr_schedule == value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"adamw": {"weight_decai": 1}}, "unknown argument weight_decai; did you mean weight_decay?"),
        ({"adamw": {"learning_rate": 1}}, "Set the key learning_rate"),
        ({"adamw": 3}, "adamw must be a mapping"),
        ({"sgdm": {}}, "unknown optimizer sgdm"),
    ],
)
def test_optimizer_config(refused, value, said):
    assert said in refused({"optimizer_config": value, "optimizer": "adamw"})


def test_the_config_of_another_optimizer_is_not_looked_into(run_config):
    value = {"adamw": {"nonsense": 1}, "adam": {"eps": 1e-6}}
    assert run_config({"optimizer_config": value}).settings.optimizer_config == value


@pytest.mark.parametrize("key", ["lora_parameters", "lr_schedule", "optimizer_config"])
def test_what_must_be_a_mapping_comes_with_an_example(refused, key):
    message = refused({key: "cosine"})
    assert f"{key}: 'cosine' (command line) must be a mapping, for example {{" in message
    assert message.startswith("This setting cannot work:")


def test_a_seed_that_numpy_does_not_take(refused):
    assert "seed: 4294967296 (command line) must be less than 4294967296" in refused({"seed": 2**32})


@pytest.mark.parametrize("mode", ["orpo", "kto", "bco", "simpo"])
def test_config_files_of_the_host_for_other_modes(mode):
    """They may hold the loss of dpo and cpo; the host ignores it there too."""
    from mlx_lm_lora_prefplus.host.config.resolve import resolve
    from mlx_lm_lora_prefplus.plugin.manager import load_registry

    own = resolve({"train_mode": mode}, load_registry())
    given = resolve({"train_mode": mode, "dpo_cpo_loss_type": "hinge", "reward_scaling": 2.0}, load_registry())
    assert given.options == own.options
    assert given.options.loss_type == mode
    assert any("dpo_cpo_loss_type" in note for note in given.notes)
    assert not any("dpo_cpo_loss_type" in note for note in own.notes)


def test_a_reference_of_its_own_cannot_follow_the_policy(tmp_path):
    from mlx_lm_lora_prefplus.errors import UserError
    from mlx_lm_lora_prefplus.host.config.resolve import resolve
    from mlx_lm_lora_prefplus.plugin.manager import load_registry

    for key in ("sync_ref_model", "bema_for_ref_model"):
        with pytest.raises(UserError, match=f"reference_model_path: 'other'.*cannot be combined with {key}"):
            resolve({"train_mode": "dpo", key: True, "reference_model_path": "other"}, load_registry())
