"""Command line > config file > trainer default > host default, for every key."""

import dataclasses
from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.host.config.parsers import actions
from mlx_lm_lora_prefplus.host.config.resolve import resolve
from mlx_lm_lora_prefplus.host.originals import originals_of

# The keys whose parser default is not None: the host ignores what a file says of them (all 24 of them).
SHADOWED = {
    "sft_loss_type": "dft",
    "gradient_accumulation_steps": 4,
    "reward_scaling": 2.0,
    "dpo_cpo_loss_type": "hinge",
    "dsla_loss": "cpo",
    "latent_weight": 0.2,
    "latent_margin": 0.1,
    "latent_gamma": 5.0,
    "latent_variant": "direction",
    "latent_pooling": "last_token",
    "latent_layer": "first",
    "delta": 5.0,
    "alpha": 1e-3,
    "group_size": 8,
    "epsilon": 1e-3,
    "max_completion_length": 64,
    "temperature": 0.5,
    "grpo_loss_type": "bnpo",
    "importance_sampling_level": "sequence",
    "klpo_route": "sequence",
    "klpo_kl_estimator": "full",
    "klpo_mc_samples": 16,
    "klpo_top_k": 16,
    "klpo_tail_floor": 1e-5,
}


def test_these_are_the_shadowed_keys(plain_host):
    shadowed = {action.dest for action in actions(plain_host.build_parser()) if action.default is not None}
    assert shadowed - {"help", "list_reward_functions"} == set(SHADOWED)


@pytest.mark.parametrize("key", SHADOWED)
def test_the_file_beats_the_parsers_default(run_config, host, key):
    extra = {"loss_type": "dpop"} if key == "delta" else {}
    resolved = run_config(file={key: SHADOWED[key], **extra})
    assert resolved.values[key] == SHADOWED[key] != host.CONFIG_DEFAULTS[key]
    assert resolved.sources[key].startswith("config ")


@pytest.mark.parametrize("key", SHADOWED)
def test_the_command_line_beats_the_file(run_config, host, key):
    extra = {"loss_type": "dpop"} if key == "delta" else {}
    typed = "ipo" if key == "dpo_cpo_loss_type" else host.CONFIG_DEFAULTS[key]
    resolved = run_config({key: typed}, {key: SHADOWED[key], **extra})
    assert resolved.values[key] == typed
    assert resolved.sources[key] == "command line"


def test_all_four_levels(run_config):
    file = {"beta": 3.0, "iters": 7, "save_every": None}
    resolved = run_config({"iters": 9}, file, mode="fancy")
    found = {key: (resolved.values[key], resolved.sources[key].split()[0]) for key in ("iters", "beta", "tau", "seed")}
    assert found == {
        "iters": (9, "command"),
        "beta": (3.0, "config"),
        "tau": (0.5, "trainer"),
        "seed": (0, "host"),
    }
    assert (resolved.values["learning_rate"], resolved.sources["learning_rate"]) == (5e-7, "trainer default")
    assert (resolved.values["save_every"], resolved.sources["save_every"]) == (100, "host default")
    assert resolved.settings.iters == 9
    assert resolved.options.beta == 3.0
    assert (resolved.trainer.mode, resolved.provider) == ("fancy", "fancy-prefs 2.1")


def test_a_trainers_default_beats_the_hosts(run_config):
    resolved = run_config(mode="fancy")
    assert (resolved.options.beta, resolved.values["beta"], resolved.sources["beta"]) == (2.0, 2.0, "trainer default")
    assert resolved.settings.batch_size == 2


def test_the_mode_comes_from_the_file_too(run_config):
    assert run_config({"train_mode": None}, {"train_mode": "cpo"}).settings.train_mode == "cpo"
    assert run_config({"train_mode": "dpo"}, {"train_mode": "cpo"}).settings.train_mode == "dpo"


def test_without_user_settings_everything_is_a_default(run_config, host):
    resolved = run_config()
    assert resolved.notes == ()
    for key, value in host.CONFIG_DEFAULTS.items():
        if key not in ("train_mode", "config"):
            assert resolved.values[key] == value, key
    assert set(dataclasses.asdict(resolved.options)) <= set(resolved.values)


def test_the_files_numbers_are_numbers(run_config):
    assert run_config(file="learning_rate: 1e-3\nbeta: .5\n").settings.learning_rate == 1e-3


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null\n"])
def test_an_empty_file_is_an_empty_config(run_config, text):
    assert run_config(file=text).values["beta"] == 0.1


def test_paths_are_accepted(run_config):
    assert run_config({"adapter_path": Path("a") / "b"}).settings.adapter_path == "a/b"


@pytest.mark.parametrize(
    ("typed", "file", "value"),
    [
        ({"fuse": False}, None, False),
        (None, {"fuse": False}, False),
        ({"fuse": True}, {"fuse": False}, True),
        (None, None, True),
    ],
)
def test_fuse_can_be_turned_off_either_way(run_config, typed, file, value):
    assert run_config(typed, file).settings.fuse is value


# the loss's two names


@pytest.mark.parametrize(
    ("typed", "file", "name"),
    [
        ({"loss_type": "ipo"}, {"dpo_cpo_loss_type": "hinge"}, "ipo"),
        ({"dpo_cpo_loss_type": "ipo"}, {"loss_type": "hinge"}, "ipo"),
        (None, {"dpo_cpo_loss_type": "hinge"}, "hinge"),
        ({"loss_type": "ipo", "dpo_cpo_loss_type": "ipo"}, None, "ipo"),
        (None, None, "sigmoid"),
    ],
)
def test_loss_type_and_its_alias(run_config, typed, file, name):
    resolved = run_config(typed, file)
    assert resolved.options.loss_type == resolved.values["loss_type"] == resolved.values["dpo_cpo_loss_type"] == name


def test_the_two_names_may_not_differ_on_one_level(refused):
    message = refused(file={"loss_type": "ipo", "dpo_cpo_loss_type": "hinge"})
    assert "two names of one key" in message
    assert "'ipo'" in message and "'hinge'" in message


def test_a_trainers_default_loss_beats_the_hosts(run_config):
    assert run_config(mode="fancy").values["dpo_cpo_loss_type"] == "plain"


# keys that nobody knows


def test_unknown_keys_are_noted_with_the_nearest_name(run_config):
    resolved = run_config({"itres": 3}, {"wand": "x", "qqq": 1, "notes_to_self": "a"})
    assert any(note.startswith("itres (command line)") and "did you mean iters?" in note for note in resolved.notes)
    assert any("wand" in note and "did you mean wandb?" in note for note in resolved.notes)
    assert any(note.startswith("qqq") and "did you mean" not in note for note in resolved.notes)
    assert [note.split()[0] for note in resolved.misspelt] == ["itres", "wand"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("betta", "beta"),
        ("Beta", "beta"),
        ("lr", "learning_rate"),
        ("lora_layers", "num_layers"),
        ("batch-size", "batch_size"),
        ("learning_rat", "learning_rate"),
        ("max_seq", "max_seq_length"),
        ("max_length", "max_seq_length"),
        ("rank", "lora_parameters"),
        ("dataset", "data"),
    ],
)
def test_a_file_that_misspells_a_key_that_decides_the_result_is_refused(run_config, refused, key, meant):
    told = f"{key}: 77 (config "
    message = refused(file={key: 77})
    assert told in message and message.endswith(f"is not a key of mode dpo; did you mean {meant}?")
    assert any(f"did you mean {meant}?" in note for note in run_config({key: 77}).notes), "programs pass what they like"


@pytest.mark.parametrize(
    "key", ["wand", "steps_per_repor", "save_evry", "reportto", "logging_steps", "text", "group_sise"]
)
def test_a_file_that_misspells_another_key_is_noted(run_config, key):
    (note,) = run_config(file={key: 1}).notes
    assert note.startswith(f"{key} (config ") and "did you mean" in note


def test_a_file_that_serves_several_modes_may_hold_keys_of_all(run_config, refused):
    (note,) = run_config(file={"tau": 0.9, "group_size": 4}).notes
    assert note.startswith("tau (config ") and note.endswith(
        "belongs to train_mode fancy (loss_type curved) and is not used in mode dpo."
    )
    assert refused(file={"tau": 0.9, "train_mode": "dpo"}).endswith(
        "not a key of mode dpo; it belongs to train_mode fancy (loss_type curved)."
    )
    (note,) = run_config(file={"sft_kin": "b"}).notes
    assert note.endswith("did you mean sft_kind, of mode fancy?")


@pytest.mark.parametrize("mode", ["dpo", "cpo"])
def test_keys_of_the_hosts_own_example_files_are_not_refused(run_config, mode):
    """`examples/example_lora.yaml` of its repository writes `wand`, and earlier `fine_tune_type`."""
    given = {
        "fine_tune_type": "lora",
        "fuse_de_quantize": True,
        "report_to": None,
        "lora_parameters": {"rank": 8, "dropout": 0.0, "scale": 10.0},
    }
    assert run_config({"train_mode": mode}, {**given, "wand": "name", "group_size": 4, "reward_weights": None})


def test_known_keys_of_files_are_not_noted(run_config):
    file = {
        **dict.fromkeys(["text_feature", "chat_feature", "prompt_feature", "chosen_feature", "system_feature"], "x"),
        **dict.fromkeys(["type_feature", "answer_feature", "completion_feature", "rejected_feature"], "x"),
        **{"preference_score_feature": "x", "hf_dataset": [{"path": "a/b"}], "wandb": "project", "truncation": "drop"},
        **{"max_grad_norm": 1.0, "max_prompt_length": 8, "label_smoothing": 0.1, "judge_config": {}},
    }
    assert run_config(file=file).notes == ()


def test_a_default_that_one_loss_lends_to_another_is_told(run_config):
    note = "beta 5, the default of sigmoid_norm, also applies to sigmoid (alone 0.1). Set beta to choose it."
    assert run_config({"loss_type": ["sigmoid_norm", "sigmoid"]}).notes == (note,)
    (note,) = run_config({"loss_type": ["robust", "sigmoid"]}).notes
    assert note.startswith("label_smoothing 0.1, the default of robust, also applies to sigmoid (alone 0)")
    assert run_config({"loss_type": ["sigmoid_norm", "sigmoid"], "beta": 2.0}).notes == ()
    assert run_config({"loss_type": ["sigmoid", "ipo", "sft"]}).notes == ()
    assert run_config({"loss_type": ["simpo", "alphapo"], "beta": 2.0, "gamma_beta_ratio": 0.5}, mode="cpo").notes == ()


# files that cannot be read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("beta: 1\n  delta: [\n", "line 2"),
        ("beta: [1\nseed: 2\n", "line 2"),
        ("- a\n- b\n", "found a list"),
        ("just words\n", "found a single value"),
        ("a: \x00\n", "not valid YAML: unacceptable character #x0000: special characters are not allowed."),
    ],
)
def test_a_malformed_file_names_the_file_and_the_line(refused, text, said):
    message = refused(file=text)
    assert "run.yaml" in message and said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("beta: 1\nseed: 2\nbeta: 3\n", "line 3, column 1: the key 'beta' is already set in line 1"),
        ("lora_parameters:\n  rank: 8\n  rank: 9\n", "line 3, column 3: the key 'rank' is already set in line 2"),
        ("seed: 2020-13-45\n", "line 1, column 7: '2020-13-45' is not a valid timestamp"),
        ("beta: !!float x\n", "line 1, column 7: 'x' is not a valid float"),
        ("a: &a [*a]\n", "line 1, column 4: an alias refers to a value that contains it"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ('model: "\\ud800"\n', "half of a surrogate pair"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    ],
)
def test_yaml_that_says_nothing_useful(refused, text, said):
    assert said in refused(file=text)


def grown(form: str) -> str:
    """Nine levels of nine aliases each: 387 million values."""
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{i}: &a{i} " + form.format(", ".join([f"*a{i - 1}"] * 9)) for i in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}"])
@pytest.mark.timeout(10)
def test_aliases_that_grow_without_bounds(refused, form):
    assert "with its aliases expanded it contains more than" in refused(file=grown(form))


def test_anchors_and_merged_keys_are_fine(run_config):
    file = "lora_parameters: &a {rank: 4}\nx: &b {rank: 5}\ny: {<<: [*a, *b], rank: 6}\nmodel: &m m\ndata: *m\n"
    resolved = run_config(file=file)
    assert (resolved.settings.lora_parameters["rank"], resolved.settings.model, resolved.data.data) == (4, "m", "m")


def test_a_missing_file(refused):
    assert "nowhere.yaml cannot be read: No such file" in refused({"config": "nowhere.yaml"})


def test_the_hosts_run_does_not_read_the_file(host, registry):
    assert resolve({"train_mode": "dpo", "config": "nowhere.yaml"}, registry, read_file=False).values["config"]


def test_no_such_mode(refused):
    assert "'sft' is not a mode of an installed plugin. Choose from: cpo, dpo, fancy" in refused(mode="sft")


def test_the_hosts_own_parser_is_asked_for_defaults(host):
    assert originals_of(host)["build_parser"] is not host.build_parser


def test_the_home_folder_of_paths_in_a_file(run_config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    keys = ("model", "data", "adapter_path", "resume_adapter_file", "reference_model_path")
    resolved = run_config(file={key: f"~/{key}" for key in keys})
    assert {key: resolved.values[key] for key in keys} == {key: f"/home/ada/{key}" for key in keys}
    assert (resolved.settings.adapter_path, resolved.data.data) == ("/home/ada/adapter_path", "/home/ada/data")
    assert run_config({"model": "owner/name~1"}).settings.model == "owner/name~1"
