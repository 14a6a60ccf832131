"""Names of the release before."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("mlx_lm_lora_prefplus.plugin", "Policy", "Scorer"),
        ("mlx_lm_lora_prefplus.losses", "Labelled", "Unpaired"),
        ("mlx_lm_lora_prefplus.trainers", "LabelledTrainer", "UnpairedTrainer"),
    ],
)
def test_an_old_name_gives_the_new_and_says_so(module, old, new):
    here = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{old} was renamed to {new}"):
        assert getattr(here, old) is getattr(here, new)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = here.Nothing
