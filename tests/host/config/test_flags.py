"""Our flags: what they parse to, and that the host's abbreviations stay what they were."""

import pytest

from mlx_lm_lora_prefplus.host.config.flags import add_modes, host_parser, mode_parser, owners
from mlx_lm_lora_prefplus.host.config.option_fields import option_fields
from mlx_lm_lora_prefplus.host.config.parsers import actions, expand, help_text
from mlx_lm_lora_prefplus.plugin.manager import HOST_MODES
from mlx_lm_lora_prefplus.settings import FIELDS, GROUPS, OWN_KEYS


@pytest.fixture
def parser_of(plain_host, registry):
    def make(mode):
        return mode_parser(add_modes(plain_host.build_parser(), registry), registry[mode])

    return make


def typed(parser, *words):
    return {key: value for key, value in vars(parser.parse_args(list(words))).items() if value is not None}


def unique_abbreviations(parser):
    """(abbreviation, option's action) for every abbreviation that the host understands."""
    options = [(option, action) for action in actions(parser) for option in action.option_strings if option != "-h"]
    names = [option for option, _ in options]
    for option, action in options:
        for length in range(3, len(option)):
            short = option[:length]
            if action.dest != "help" and short not in names and sum(name.startswith(short) for name in names) == 1:
                yield short, action


def value_of(action):
    return [] if action.nargs == 0 else [str(action.choices[0]) if action.choices else "1"]


@pytest.mark.parametrize("mode", ["cpo", "dpo", "fancy"])
def test_every_unique_abbreviation_of_the_host_means_the_same(plain_host, parser_of, mode):
    theirs, ours = plain_host.build_parser(), parser_of(mode)
    by_dest = {action.dest: action for action in actions(ours) if action.option_strings != ["--no-fuse"]}
    count = 0
    for short, action in unique_abbreviations(theirs):
        if mode == "fancy" and short == "--tau":  # a flag of the mode that is spelt out in full
            continue
        words = [short, *value_of(by_dest[action.dest])]
        assert action.dest in typed(ours, *words), short
        assert action.dest in typed(ours, "=".join(words)), short
        count += 1
    assert count > 300


def test_the_abbreviations_that_people_use(parser_of):
    found = typed(parser_of("fancy"), "--resume", "x", "--save", "5", "--sft", "nll", "--savers", "3", "--resumes")
    assert found == {
        **{"resume_adapter_file": "x", "save_every": 5, "sft_loss_type": "nll"},
        **{"savers": 3, "resumes": True},
    }


def test_words_behind_two_dashes_are_left_alone():
    assert expand("--", ("--save-every",)) == "--"
    assert expand("--save=3", ("--save-every",)) == "--save-every=3"
    assert expand("--s", ("--save-every", "--seed")) == "--s"


@pytest.mark.parametrize("mode", ["cpo", "dpo", "fancy"])
def test_there_is_a_flag_for_every_key_with_its_description(parser_of, registry, mode):
    parser = parser_of(mode)
    text = " ".join(parser.format_help().split())
    known = {action.dest for action in actions(parser)}
    for key, field in option_fields(registry[mode].trainer.options).items():
        assert key in known
        if key != "loss_type":
            assert " ".join((field.description or "").removesuffix(".").split()[:3]) in text
    assert set(OWN_KEYS) | {"loss_type", "lora_parameters", "lr_schedule", "chosen_feature"} <= known
    assert f"--train-mode {mode} ({registry[mode].provider})" in text


def test_values_of_every_shape(parser_of):
    words = "--tau 0.25 --no-resumes --savers 7 --sft-kind b --weights [1,2.5] --alpha 1e-3 --beta 3"
    assert typed(parser_of("fancy"), *words.split()) == {
        **{"tau": 0.25, "resumes": False, "savers": 7, "sft_kind": "b"},
        **{"weights": [1, 2.5], "alpha": 1e-3, "beta": 3},
    }


def test_nothing_typed_is_nothing_but_none(parser_of):
    assert typed(parser_of("dpo")) == {}


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--no-fuse"], "fuse", False),
        (["--fuse"], "fuse", True),
        (["--lora-parameters", '{"rank": 4}'], "lora_parameters", {"rank": 4}),
        (["--lr-schedule", "{name: cosine_decay, arguments: [1e-5, 10]}"], "lr_schedule", None),
        (["--loss-type", "hinge"], "loss_type", "hinge"),
        (["--dpo-cpo-loss-type", "curved"], "dpo_cpo_loss_type", "curved"),
        (["--dpo-cpo-loss-type", "[plain, curved]"], "dpo_cpo_loss_type", ["plain", "curved"]),
        (["--prompt-feature", "question"], "prompt_feature", "question"),
        (["--truncation", "drop"], "truncation", "drop"),
        (["--max-grad-norm", "1"], "max_grad_norm", 1),
    ],
)
def test_flags(parser_of, words, key, value):
    value = {"name": "cosine_decay", "arguments": [1e-5, 10]} if value is None else value
    assert typed(parser_of("fancy"), *words)[key] == value


def test_a_structure_that_is_no_yaml_is_a_usage_error(parser_of, capsys):
    with pytest.raises(SystemExit):
        parser_of("dpo").parse_args(["--lora-parameters", "{rank: "])
    assert "not valid JSON or YAML" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--max-grad-norm", ""], ["--beta="], ["--lr-schedule", " "]])
def test_a_flag_without_a_value_is_a_usage_error(parser_of, capsys, words):
    """`--beta "$BETA"` with no such variable must not train with the default."""
    with pytest.raises(SystemExit):
        parser_of("dpo").parse_args(words)
    assert "the value is empty" in capsys.readouterr().err


def test_the_list_of_host_modes_is_the_hosts(plain_host):
    choices = next(action.choices for action in actions(plain_host.build_parser()) if action.dest == "train_mode")
    assert sorted(choices) == sorted(HOST_MODES)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--resume"], {"resume": True}),
        (["--resume", "--seed", "3"], {"resume": True, "seed": 3}),
        (["--resume", "force"], {"resume": "force"}),
        (["--resume=false"], {"resume": False}),
        (["--resume", "a.safetensors"], {"resume_adapter_file": "a.safetensors"}),
        (["--resume=a.safetensors", "--seed", "3"], {"resume_adapter_file": "a.safetensors", "seed": 3}),
    ],
)
def test_resume_is_a_switch_and_with_a_file_the_hosts_abbreviation(parser_of, words, found):
    assert typed(parser_of("dpo"), *words) == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--betta", "0.2"], "--betta is not an option of --train-mode dpo; did you mean --beta?"),
        (["--lr", "1e-5"], "--lr is not an option of --train-mode dpo; did you mean --learning-rate?"),
        (["--lora-layers=4"], "--lora-layers is not an option of --train-mode dpo; did you mean --num-layers?"),
        (["--sft-kind", "b"], "--sft-kind is not an option of --train-mode dpo. It belongs to --train-mode fancy."),
        (["--sft-kin", "1"], "did you mean --sft-kind, of --train-mode fancy?"),
        (["--qqq"], "--qqq is not an option of --train-mode dpo."),
        (["--betta", "1", "--qqq"], "did you mean --beta? - --qqq is not an option of --train-mode dpo."),
        (["--iters"], "--iters needs a value, but none was given."),
        (["stray"], "'stray' does not belong to any option. Remove it."),
    ],
)
def test_a_wrong_option_gets_a_short_error_and_not_the_usage(plain_host, registry, capsys, words, said):
    parser = mode_parser(add_modes(plain_host.build_parser(), registry), registry["dpo"], registry)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(words)
    lines = capsys.readouterr().err.splitlines()
    message = " ".join(" ".join(lines).split())
    assert stopped.value.code == 2 and message.startswith("[ERROR] ") and said in message
    assert message.endswith(f" `{parser.prog} --train-mode dpo --help` lists the options.")
    assert parser.prog.endswith("mlx_lm_lora.train")
    assert len(lines) <= 4 and max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("mode", "words", "said"),
    [
        ("sft", ["--betta", "1"], "--betta is not an option of --train-mode sft; did you mean --beta?"),
        ("sft", ["--savers", "1"], "--savers is not an option of --train-mode sft. It belongs to --train-mode fancy."),
        ("sft", ["--batch-size", "x"], "--batch-size: 'x' is not a whole number."),
        ("sft", ["--train-type", "lorra"], "--train-type: 'lorra' is not one of lora, dora, full. Did you mean lora?"),
        (None, ["--label-smoothing", "1"], "not an option of the default --train-mode, which is sft. It belongs to"),
        (None, ["--train-mode"], "--train-mode needs a value"),
    ],
)
def test_a_mode_of_the_host_gets_short_errors_too(plain_host, registry, capsys, mode, words, said):
    parser = host_parser(plain_host.build_parser(), mode, registry)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(words)
    lines = capsys.readouterr().err.splitlines()
    message = " ".join(" ".join(lines).split())
    assert stopped.value.code == 2 and len(lines) <= 4 and said in message
    assert message.endswith(f" `{parser.prog}{' --train-mode sft' if mode else ''} --help` lists the options.")


def test_a_mode_of_the_host_is_parsed_as_by_the_host(plain_host, registry):
    words = ["--train-mode", "sft", "--iters", "3", "--learning", "1e-3"]
    ours = host_parser(plain_host.build_parser(), "sft", registry)
    assert vars(ours.parse_args(words)) == vars(plain_host.build_parser().parse_args(words))
    assert vars(ours.parse_args([])) == vars(plain_host.build_parser().parse_args([]))


def test_the_error_names_the_modes_and_losses_that_have_the_option():
    from mlx_lm_lora_prefplus.plugin.manager import load_registry

    of = owners(load_registry())
    assert of["simpo_gamma"].startswith("cpo (loss_type simpo, alphapo") and of["simpo_gamma"].endswith("or simpo")
    assert of["dpop_lambda"] == "dpo (loss_type dpop_paper)"
    assert of["reference_free"] == "dpo"


def test_the_help_of_a_mode_begins_with_its_options_and_has_none_of_other_modes(plain_host, registry, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = mode_parser(add_modes(plain_host.build_parser(), registry), registry["dpo"], registry).format_help()
    usage, _, *sections = text.split("\n\n")
    assert len(usage.splitlines()) == 2 and "--train --model MODEL --data DATA" in usage
    titles = [section.splitlines()[0] for section in sections]
    assert titles[0].startswith("Options of --train-mode dpo") and titles[2:][: len(GROUPS)] == [
        f"{one}:" for one in GROUPS
    ]
    assert "--loss-type" in sections[0] and "--beta" in sections[0]
    assert not [
        option for option in ("--klpo-", "--judge", "--latent", "--simpo-gamma", "--sft-loss") if option in text
    ]
    assert max(map(len, text.splitlines())) <= 100


def test_every_key_of_a_run_is_in_the_help(plain_host, registry):
    text = mode_parser(add_modes(plain_host.build_parser(), registry), registry["dpo"], registry).format_help()
    assert [key for key in FIELDS if f"--{key.replace('_', '-')}" not in text] == []


def test_the_help_names_a_default_once():
    assert help_text("Rate.", (), 0.5) == "Rate (default: 0.5)."
    assert help_text("Rate (default: none).", (), 0.5) == "Rate (default: none)."
    assert help_text("100 % of it.", ("a", "b"), True) == "100 %% of it. One of: a, b (default: on)."
    assert help_text("A switch.", (), False) == "A switch."
