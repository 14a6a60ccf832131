"""What is format_value of a loss comes from its row, its docstring and the config keys, and is whole."""

import dataclasses
import runpy

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.tools.describe import describe, mode_options, sections
from mlx_lm_lora_prefplus.host.tools.render import format_value, sentence
from mlx_lm_lora_prefplus.plugin.manager import Registered, Registry
from mlx_lm_lora_prefplus.trainers import mlx_lm_lora_register_trainers
from tests.paths import ROOT


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry({trainer.mode: Registered(trainer, "ours") for trainer in mlx_lm_lora_register_trainers()})


def test_every_row_of_every_table_is_described(registry):
    expected = [(mode, name) for mode in registry.modes for name in registry[mode].trainer.losses]
    assert [(loss.mode, loss.name) for loss in describe(registry)] == expected


def test_nothing_that_a_reader_needs_is_missing(registry):
    for loss in describe(registry):
        assert loss.formula and loss.when and loss.columns, loss.name
        assert loss.name == "sft" or (loss.references and loss.value), loss.name
        assert all(option.about for option in loss.options), loss.name
        assert loss.log_probs.startswith("means" if loss.means or loss.name == "sft" else "sums"), loss.name


def test_a_description_in_full(registry):
    (loss,) = describe(registry, "odpo")
    assert loss.mode == "dpo" and loss.reference and not loss.means and loss.rows == "paired"
    assert loss.formula == "−log σ(βΔ − α·ln(s_w − s_l))"
    assert loss.columns == ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")
    assert [(option.key, option.default, option.bounds) for option in loss.options] == [
        ("beta", 0.1, "> 0"),
        ("odpo_alpha", 1.0, "≥ 0"),
    ]
    assert "arXiv:2402.10571" in loss.references and "column" in loss.log_probs


def test_defaults_are_those_of_the_loss(registry):
    defaults = {
        (loss.mode, loss.name): {option.key: option.default for option in loss.options} for loss in describe(registry)
    }
    assert defaults["dpo", "sigmoid"]["beta"] == 0.1 and defaults["dpo", "sigmoid_norm"]["beta"] == 5.0
    assert (defaults["cpo", "slic"]["delta"], defaults["cpo", "dpop"]["delta"]) == (1.0, 50.0)
    assert defaults["simpo", "simpo"]["gamma_beta_ratio"] is None


def test_the_defaults_said_are_those_in_force(registry):
    for loss in describe(registry):
        if any(option.default is None and option.key == "chi_po_clip" for option in loss.options):
            continue  # it has none and must be given
        options = registry[loss.mode].trainer.options(loss_type=loss.name)
        assert all(getattr(options, option.key) == option.default for option in loss.options), loss.name


def test_keys_of_the_mode_are_those_that_no_loss_names(registry):
    keys = {option.key for option in mode_options(registry["dpo"].trainer)}
    assert {"sft_weight", "reference_free", "f_divergence_type"} <= keys and not {"beta", "loss_type"} & keys
    own = {option.key for loss in describe(registry, mode="dpo") for option in loss.options}
    fields = {field.name for field in dataclasses.fields(registry["dpo"].trainer.options)}
    assert keys | own == fields - {"loss_type"}


def test_choices_and_bounds(registry):
    bounds = {option.key: option.bounds for option in mode_options(registry["dpo"].trainer)}
    assert bounds["sft_normalization"] == "token, sequence"
    assert bounds["ref_model_mixup_alpha"] == "> 0, ≤ 1"


def test_a_mode_of_another_package():
    example = runpy.run_path(str(ROOT / "tests/plugin/example_package/mlx_lm_lora_slic.py"))
    slic = Registry({"slic": Registered(example["SLIC"], "theirs")})
    (loss,) = describe(slic)
    assert (loss.formula, loss.meaning[:10]) == ("max(0, δ − log p_w + log p_l)", "the chosen")
    assert [(option.key, option.default) for option in loss.options] == [("slack", 1.0)]
    assert not loss.reference and loss.references == ""


@pytest.mark.parametrize(
    ("name", "mode", "told"),
    [
        ("simpoo", None, "There is no loss 'simpoo'; did you mean simpo?"),
        ("KTO-pair", None, "did you mean kto_pair?"),
        ("kto", "dpo", "There is no loss 'kto' in mode dpo; did you mean kto_pair?"),
        (None, "dop", "There is no mode 'dop'; did you mean dpo?"),
        ("zzz", None, "There is no loss 'zzz'. Choose from: sigmoid"),
    ],
)
def test_what_is_not_there(registry, name, mode, told):
    with pytest.raises(UserError) as raised:
        describe(registry, name, mode)
    assert told in str(raised.value)


def test_the_parts_of_a_docstring():
    def function():
        """x²: the square
        of x.

        More.

        Args:
            x: a number,
                any.
            y: not used.

        Returns:
            A number;
            0 at 0.
        """

    parts = sections(function)
    assert parts == {
        "": "x²: the square of x.",
        "Args": "x: a number,\n    any.\ny: not used.",
        "Returns": "A number; 0 at 0.",
    }


def test_values_as_a_config_file_has_them():
    assert [format_value(value) for value in (5e-7, 1e-6, 0.1, True, None, ["a", 0.5])] == [
        *("5e-7", "1e-6", "0.1", "true", "–", "[a, 0.5]")
    ]


def test_a_symbol_keeps_its_case():
    assert (sentence("α bends"), sentence("pulls.")) == ("α bends.", "Pulls.")
