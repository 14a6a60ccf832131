"""Values that are allowed and fail, each with a warning that says what to use; and none where nothing is wrong."""

import pytest

from mlx_lm_lora_prefplus.losses import OPTIONS, advice


@pytest.mark.parametrize("mode", OPTIONS)
def test_no_warning_on_the_defaults_of_any_loss(mode):
    for name in OPTIONS[mode].table:
        given = {"chi_po": {"chi_po_clip": 10.0}}.get(name, {})
        told = advice(OPTIONS[mode](loss_type=name, **given), 0.0, (10, 10) if mode in ("kto", "bco") else None)
        assert told == [] or name == "sft", told


@pytest.mark.parametrize(
    ("mode", "given", "said"),
    [
        ("simpo", {"beta": 0.1, "simpo_gamma": 0.05}, "Published values are 2 to 10"),
        ("cpo", {"loss_type": "simpo", "simpo_gamma": 5.0}, "Published ratios are 0.1 to 0.8"),
        ("simpo", {"loss_type": "alphapo", "alphapo_alpha": 50.0}, "far from the published 0.25"),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.0, 0.0]}, "nothing is learned"),
        ("dpo", {"ref_model_sync_steps": 10}, "has no effect without sync_ref_model: true"),
        ("dpo", {"bema_update_freq": 10}, "has no effect without bema_for_ref_model: true"),
        ("dpo", {"f_alpha_divergence_coef": 0.3}, "without f_divergence_type: alpha_divergence"),
        ("dpo", {"sft_normalization": "sequence"}, "sft_normalization has no effect without sft_weight"),
        ("cpo", {"sft_normalization": "sequence"}, "sft_normalization has no effect without cpo_alpha"),
    ],
)
def test_a_warning(mode, given, said):
    (told,) = advice(OPTIONS[mode](**given))
    assert said in told


@pytest.mark.parametrize(
    ("mode", "given"),
    [
        ("dpo", {"sync_ref_model": True, "ref_model_sync_steps": 10, "ref_model_mixup_alpha": 0.5}),
        ("dpo", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}),
        ("dpo", {"sft_weight": 1.0, "sft_normalization": "sequence"}),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "sft_normalization": "sequence"}),
        ("orpo", {"sft_normalization": "token"}),
    ],
)
def test_no_warning(mode, given):
    assert advice(OPTIONS[mode](**given)) == []


@pytest.mark.parametrize(
    ("mode", "given", "said"),
    [
        ("kto", {}, "kto estimates the KL divergence from a single row"),
        ("dpo", {"loss_type": "aot"}, "there is nothing to sort, so aot is DPO"),
        ("dpo", {"loss_type": "aot, aot_unpaired"}, "so aot is DPO; there is nothing to sort, so aot_unpaired is DPO"),
        ("dpo", {"dr_dpo_beta": 1.0}, "dr_dpo_beta has no effect"),
    ],
)
def test_examples_alone_in_their_micro_batch(mode, given, said):
    options = OPTIONS[mode](**given)
    assert advice(options, 0.05) == []
    (told,) = advice(options, 0.4)
    assert told.startswith("40% of the micro-batches contain only one example: ") and said in told
    assert advice(options, 1.0)[0].startswith("All micro-batches contain only one")
    assert advice(OPTIONS["dpo"](), 1.0) == []


@pytest.mark.parametrize(
    ("weights", "rows", "said"),
    [
        ((1.0, 1.0), (10, 10), ()),
        ((1.0, 1.0), (10, 20), ("0.50 times", "Try desirable_weight 2.")),
        ((1.0, 1.0), (10, 0), ("All rows are desirable",)),
        ((0.0, 1.0), (10, 10), ("desirable_weight 0: nothing from those rows is learned.",)),
        ((1.0, 0.0), (10, 10), ("undesirable_weight 0: nothing from those rows is learned.",)),
        ((0.0, 0.0), (10, 10), ("desirable_weight and undesirable_weight 0: nothing is learned.",)),
    ],
)
def test_weights_of_labels(weights, rows, said):
    options = OPTIONS["kto"](desirable_weight=weights[0], undesirable_weight=weights[1])  # type: ignore[call-arg]
    told = advice(options, 0.0, rows)
    assert len(told) == bool(said)
    for part in said:
        assert part in told[0]
