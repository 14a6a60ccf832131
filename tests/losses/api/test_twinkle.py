"""The losses with Twinkle's interface against the numbers of its own code, and what they refuse."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.losses.api.twinkle import CPOLoss, DPOLoss, ORPOLoss, PreferenceLossBase, SimPOLoss
from mlx_lm_lora_prefplus.losses.formulas.pairs import hinge
from mlx_lm_lora_prefplus.losses.inputs import Pairs

LABELS = [[-100, -100, 5, 7, 9, -100], [-100, -100, 5, 8, -100, -100], [-100, 3, 4, 6, 2, 1], [-100, 3, 9] + [-100] * 3]
LOGPS = [
    [-0.30, -0.63, -0.96, -0.52, -0.85, -0.41],
    [-0.85, -0.41, -0.74, -0.30, -0.63, -0.96],
    [-0.63, -0.96, -0.52, -0.85, -0.41, -0.74],
    [-0.41, -0.74, -0.30, -0.63, -0.96, -0.52],
]
REFERENCE = [[-0.45, -0.63, -0.81] * 2, [-0.72, -0.90, -0.54] * 2, [-0.45, -0.63, -0.81] * 2, [-0.72, -0.90, -0.54] * 2]
COUNTED = np.array(LABELS) != -100
SUMS = (COUNTED * np.array(REFERENCE)).sum(1)
INPUTS, OUTPUTS = {"labels": mx.array(LABELS)}, {"logps": mx.array(LOGPS)}
WITH_REFERENCE = {"ref_logps": REFERENCE}

# Loss, and its slope in a token of each row (chosen, rejected, chosen, rejected), from Twinkle's code in float64.
NUMBERS = {
    "sigmoid": (DPOLoss(), 0.7238584198, (-0.0258247, 0.0258247, -0.0256873, 0.0256873)),
    "sigmoid, free": (DPOLoss(reference_free=True), 0.7911483286, (-0.0266100, 0.0266100, -0.0280350, 0.0280350)),
    "hinge": (DPOLoss(loss_type="hinge"), 1.0605, (-0.05, 0.05, -0.05, 0.05)),
    "ipo": (DPOLoss(loss_type="ipo"), 25.6086905, (-0.5066, 0.5066, -0.5055, 0.5055)),
    "kto": (DPOLoss(loss_type="kto"), 1.0151233002, (-0.012494, 0.012498, -0.012499, 0.012495)),
    "kto_pair": (DPOLoss(loss_type="kto_pair"), 1.0151233002, (-0.012494, 0.012498, -0.012499, 0.012495)),
    "smoothed": (DPOLoss(beta=0.5, label_smoothing=0.1), 0.8256345131, (-0.12044, 0.12044, -0.11708, 0.11708)),
    "sft": (DPOLoss(sft_weight=0.7), 1.2322334198, (-0.113325, 0.025825, -0.113187, 0.025687)),
    "simpo": (SimPOLoss(), 1.3442565011, (-0.315827, 0.473741, -0.179775, 0.449437)),
    "simpo, page": (SimPOLoss(beta=2.0, gamma=1.0), 1.6472123243, (-0.273185, 0.409777, -0.158891, 0.397228)),
    "cpo": (CPOLoss(), 1.5173983286, (-0.15161, 0.02661, -0.153035, 0.028035)),
    "cpo, no NLL": (CPOLoss(cpo_alpha=0.0), 0.7911483286, (-0.02661, 0.02661, -0.028035, 0.028035)),
    "orpo": (ORPOLoss(), 0.8216157271, (-0.144522, 0.039002, -0.136884, 0.03674)),
    "orpo, 0.5": (ORPOLoss(beta=0.5), 1.2030786357, (-0.222608, 0.195009, -0.18442, 0.1837)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_value_and_gradient_of_twinkle(name):
    loss, expected, slopes = NUMBERS[name]
    value, gradient = mx.value_and_grad(lambda logps: loss(INPUTS, {"logps": logps}, **WITH_REFERENCE)["loss"])(
        OUTPUTS["logps"]
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert loss(INPUTS, OUTPUTS, **WITH_REFERENCE)["num_tokens"] == 0
    np.testing.assert_allclose(np.array(gradient), COUNTED * np.array(slopes)[:, None], atol=6e-7)


def oracle_loss(name: str):
    """What the oracle's names mean, and the arguments of its call; None: its code swallows something."""
    reference = {"ref_logps": mx.array(REFERENCE)}
    if name.startswith("DPO"):
        options = {}
        for word in name.split()[1:]:
            if word in ("sigmoid", "hinge", "ipo", "kto_pair"):
                options["loss_type"] = word
            elif "=" in word:
                key, value = word.split("=")
                options[{"ls": "label_smoothing"}.get(key, key)] = float(value)
            elif word == "reference_free":
                options["reference_free"] = True
        if "ref_chosen/rejected_logps" in name:
            reference = {"ref_chosen_logps": mx.array(SUMS[0::2]), "ref_rejected_logps": mx.array(SUMS[1::2])}
        elif "ref_outputs" in name:
            reference = {"ref_outputs": {"logps": mx.array(REFERENCE)}}
        elif "reference_free" in name and "ref given" not in name:
            reference = {}
        return DPOLoss(**options), reference
    return {
        "SimPO default (2.5,0.5)": SimPOLoss(),
        "SimPO beta=2 gamma=1": SimPOLoss(2.0, 1.0),
        "CPO default (0.1,bc=1)": CPOLoss(),
        "CPO bc_coef=0": CPOLoss(bc_coef=0.0),
        "ORPO default (0.1)": ORPOLoss(),
        "ORPO lambda=0.5": ORPOLoss(lambda_orpo=0.5),
    }[name], {}


@pytest.mark.shared
@pytest.mark.parametrize("dtype, rtol", [(mx.float32, 1e-5), (mx.float64, 1e-7)], ids=["float32", "float64"])
def test_every_case_of_twinkle(shared, dtype, rtol):
    """All 22 but the three whose names say that its code drops an argument or a missing reference.

    In float64 the options (β = 0.1) are still rounded to float32.
    """
    oracle, tried = json.loads((shared / "oracles" / "twinkle.json").read_text()), 0
    with mx.stream(mx.cpu):
        inputs = {"labels": mx.array(oracle["labels"])}
        logps = mx.array(np.array(oracle["logps"]), dtype)
        for case in oracle["cases"]:
            if "swallowed" in case["name"] or "no ref" in case["name"]:
                continue
            loss, reference = oracle_loss(case["name"])
            reference = {
                key: {"logps": value["logps"].astype(dtype)} if isinstance(value, dict) else value.astype(dtype)
                for key, value in reference.items()
            }
            if "ref_logps" in reference:
                reference["ref_logps"] = mx.array(np.array(oracle["ref_logps"]), dtype)
            call = lambda logps: loss(inputs, {"logps": logps}, **reference)  # noqa: B023, E731
            value, gradient = mx.value_and_grad(lambda logps: call(logps)["loss"])(logps)  # noqa: B023
            assert call(logps)["num_tokens"] == case["num_tokens"]
            assert value.dtype == dtype
            assert value.item() == pytest.approx(case["loss"], rel=rtol), case["name"]
            np.testing.assert_allclose(
                np.array(gradient), case["grad"], rtol=rtol, atol=rtol / 100, err_msg=case["name"]
            )
            tried += 1
    assert tried == len(oracle["cases"]) - 3 == 19


def test_from_logits():
    """Twinkle's number for logits sin(1.3·i + 0.7·t + 0.37·v), 12 of them, reference-free."""
    i, t, v = np.ogrid[:4, :6, :12]
    logits = np.sin(1.3 * i + 0.7 * t + 0.37 * v)
    loss = DPOLoss(reference_free=True)
    assert loss(INPUTS, {"logits": mx.array(logits)})["loss"].item() == pytest.approx(1.0566095824542319, rel=1e-5)
    longer = np.concatenate([np.full((4, 3, 12), 50.0), logits], axis=1)
    assert loss(INPUTS, {"logits": mx.array(longer)})["loss"].item() == pytest.approx(1.0566095824542319, rel=1e-5)
    bf16 = loss(INPUTS, {"logits": mx.array(logits).astype(mx.bfloat16)})["loss"]
    assert bf16.dtype == mx.float32 and bf16.item() == pytest.approx(1.0566, rel=2e-2)


def test_logits_and_log_probs_agree():
    logits = mx.array(np.random.default_rng(0).normal(0, 2, (4, 6, 12)).astype(np.float32))
    base = PreferenceLossBase()
    logps = base.token_logps({"logits": logits}, INPUTS["labels"])
    full = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for row, place in zip(*np.nonzero(COUNTED), strict=True):
        assert logps[row, place].item() == pytest.approx(full[row, place, LABELS[row][place]].item(), rel=1e-5)
    assert (np.array(logps)[~COUNTED] == 0).all()


# The reference.


def value(loss=None, **arguments) -> float:
    return (loss or DPOLoss())(INPUTS, OUTPUTS, **arguments)["loss"].item()


GIVEN = {
    "lists": {"ref_logps": REFERENCE},
    "array": {"ref_logps": mx.array(REFERENCE)},
    "longer array": {"ref_logps": mx.concatenate([mx.array(REFERENCE), mx.full((4, 2), -9.0)], axis=1)},
    "longer, ragged lists": {"ref_logps": [row + [-9.0] * i for i, row in enumerate(REFERENCE)]},
    "outputs": {"ref_outputs": {"logps": mx.array(REFERENCE)}},
    "sums": {"ref_chosen_logps": SUMS[0::2].tolist(), "ref_rejected_logps": mx.array(SUMS[1::2])},
    "sums before tokens": {
        "ref_chosen_logps": SUMS[0::2],
        "ref_rejected_logps": SUMS[1::2],
        "ref_logps": mx.zeros((4, 6)),
        "ref_outputs": {"logps": mx.zeros((4, 6))},
    },
    "tokens before outputs": {"ref_logps": REFERENCE, "ref_outputs": {"logps": mx.zeros((4, 6))}},
}


@pytest.mark.parametrize("way", GIVEN)
def test_the_reference_is_taken_in_every_form(way):
    assert value(**GIVEN[way]) == pytest.approx(0.7238584198, rel=1e-5)


def test_the_reference_from_logits():
    logits = mx.array(np.random.default_rng(0).normal(0, 2, (4, 8, 12)).astype(np.float32))
    logps = PreferenceLossBase().token_logps({"logits": logits}, INPUTS["labels"])
    assert value(ref_outputs={"logits": logits}) == pytest.approx(value(ref_logps=logps), rel=1e-6)


def test_a_reference_that_is_not_needed_is_left_unread():
    for loss in (DPOLoss(reference_free=True), SimPOLoss(), CPOLoss(), ORPOLoss()):
        assert value(loss, ref_logps=mx.zeros((1, 1))) == value(loss)


def test_ignored_positions_may_hold_anything():
    """−inf and NaN where there is no label: no effect on value or gradient."""
    dirty = {
        "logps": mx.where(mx.array(COUNTED), OUTPUTS["logps"], -math.inf),
        "reference": mx.where(mx.array(COUNTED), mx.array(REFERENCE), math.nan),
    }
    for loss, expected, _ in NUMBERS.values():
        call = lambda logps: loss(INPUTS, {"logps": logps}, ref_logps=dirty["reference"])["loss"]  # noqa: B023, E731
        result, gradient = mx.value_and_grad(call)(dirty["logps"])
        assert result.item() == pytest.approx(expected, rel=1e-5)
        assert mx.isfinite(gradient).all()


def test_rows_without_a_label_are_finite():
    labels = mx.full((2, 6), -100)
    for loss, *_ in NUMBERS.values():
        call = lambda logps: loss({"labels": labels}, {"logps": logps}, ref_logps=mx.zeros((2, 6)))["loss"]  # noqa: B023, E731
        result, gradient = mx.value_and_grad(call)(mx.array(LOGPS[:2]))
        assert math.isfinite(result.item()) and mx.isfinite(gradient).all()


def test_another_ignore_index():
    labels = np.where(COUNTED, LABELS, -1)
    result = CPOLoss(ignore_index=-1)({"labels": labels}, OUTPUTS)["loss"]
    assert result.item() == pytest.approx(1.5173983286, rel=1e-5)


# Names and refusals.


def test_the_names_of_code_and_page():
    assert CPOLoss(bc_coef=0.3).cpo_alpha == CPOLoss(cpo_alpha=0.3).bc_coef == 0.3
    assert CPOLoss(bc_coef=0.3, cpo_alpha=0.3).cpo_alpha == 0.3
    assert ORPOLoss(lambda_orpo=0.3).beta == ORPOLoss(beta=0.3).lambda_orpo == ORPOLoss(0.3).beta == 0.3
    assert (CPOLoss().cpo_alpha, ORPOLoss().beta) == (1.0, 0.1)
    assert CPOLoss(0.1, 0.0).cpo_alpha == 0.0


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: CPOLoss(cpo_alpha=1.0, bc_coef=0.5), ValueError, "cpo_alpha is 1.0 and bc_coef is 0.5"),
        (lambda: ORPOLoss(beta=0.1, lambda_orpo=0.0), ValueError, "beta is 0.1 and lambda_orpo is 0.0"),
        (lambda: DPOLoss(loss_type="dpo"), ValueError, "loss_type is 'dpo'. Choose one of sigmoid, hinge, ipo, kto"),
        (lambda: DPOLoss(label_smoothing=0.5), ValueError, "label_smoothing is 0.5"),
        (lambda: DPOLoss(label_smoothing=0.1, loss_type="ipo"), ValueError, "works only with loss_type 'sigmoid'"),
        (lambda: DPOLoss(beta=0.0), ValueError, "beta is 0.0"),
        (lambda: SimPOLoss(beta=math.inf), ValueError, "beta is inf"),
        (lambda: DPOLoss(sft_weight=-1.0), ValueError, "sft_weight is -1.0"),
        (lambda: CPOLoss(cpo_alpha=-1.0), ValueError, "cpo_alpha is -1.0"),
        (lambda: DPOLoss(gamma=1.0), TypeError, "gamma"),
        (lambda: SimPOLoss(alpha=1.0), TypeError, "alpha"),
        (lambda: CPOLoss(sft_weight=1.0), TypeError, "sft_weight"),
        (lambda: ORPOLoss(alpha=1.0), TypeError, "alpha"),
        (lambda: value(reference=1), TypeError, "reference"),
        (lambda: value(), ValueError, "none is given. Pass ref_logps, ref_outputs"),
        (lambda: value(ref_outputs={}), ValueError, "outputs must contain 'logps' or 'logits'"),
        (lambda: value(ref_chosen_logps=SUMS[0::2]), ValueError, "Give both"),
        (lambda: value(ref_chosen_logps=SUMS, ref_rejected_logps=SUMS), ValueError, "each of the 2 pairs"),
        (lambda: value(ref_logps=mx.zeros((4, 5))), ValueError, "4 rows of at least 5 tokens"),
        (lambda: value(ref_logps=[*REFERENCE[:3], [0.0] * 5]), ValueError, "4 rows of at least 5 tokens"),
        (lambda: value(ref_logps=mx.zeros((2, 6))), ValueError, "2 rows"),
        (lambda: CPOLoss()({"labels": LABELS[:3]}, {"logps": LOGPS[:3]}), ValueError, "even number of rows"),
        (lambda: CPOLoss()({"labels": LABELS[0]}, {"logps": LOGPS[0]}), ValueError, "even number of rows"),
        (lambda: value(ref_logps=[]), ValueError, "0 rows of at least 0 tokens"),
        (lambda: CPOLoss()({"labels": mx.zeros((0, 6))}, OUTPUTS), ValueError, "even number of rows"),
        (lambda: CPOLoss()({}, OUTPUTS), ValueError, "inputs must contain 'labels'"),
        (lambda: CPOLoss()(INPUTS, {}), ValueError, "outputs must contain 'logps' or 'logits'"),
        (
            lambda: CPOLoss()(INPUTS, {"logps": mx.zeros((4, 7))}),
            ValueError,
            r"shape \(4, 7\)\. It must have the shape of the labels, \(4, 6\)",
        ),
        (lambda: CPOLoss()(INPUTS, {"logits": mx.zeros((4, 5, 12))}), ValueError, "at least 6, vocabulary"),
        (lambda: CPOLoss()(INPUTS, {"logits": mx.zeros((2, 6, 12))}), ValueError, "at least 6, vocabulary"),
        (lambda: PreferenceLossBase()(INPUTS, OUTPUTS), NotImplementedError, "Implement pair_loss"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


# The shared utilities.


def test_the_utilities_of_the_base():
    base = PreferenceLossBase()
    sums = base.sequence_logps(OUTPUTS, INPUTS["labels"])
    expected = (COUNTED * np.array(LOGPS)).sum(1)
    np.testing.assert_allclose(np.array(sums), expected, rtol=1e-6)
    np.testing.assert_allclose(np.array(base.aggregate(OUTPUTS["logps"], INPUTS["labels"])), expected, rtol=1e-6)
    means = base.aggregate(OUTPUTS["logps"], INPUTS["labels"], mean=True)
    np.testing.assert_allclose(np.array(means), expected / COUNTED.sum(1), rtol=1e-6)
    tokens = base.token_logps(OUTPUTS, INPUTS["labels"])
    np.testing.assert_allclose(np.array(tokens), np.where(COUNTED, LOGPS, 0), rtol=1e-6)
    chosen, rejected = base.split_chosen_rejected(mx.arange(6))
    assert (chosen.tolist(), rejected.tolist()) == ([0, 2, 4], [1, 3, 5])
    with pytest.raises(ValueError, match="3 rows cannot be pairs"):
        base.split_chosen_rejected(mx.arange(3))


def test_a_loss_of_ones_own():
    class Mine(PreferenceLossBase):
        needs_reference = True

        def pair_loss(self, pairs: Pairs) -> mx.array:
            return hinge(pairs, beta=0.1)

    assert value(Mine(), ref_logps=REFERENCE) == pytest.approx(1.0605, rel=1e-5)


def test_the_classes_are_where_the_page_has_them():
    from mlx_lm_lora_prefplus import losses

    for name in ("DPOLoss", "SimPOLoss", "CPOLoss", "ORPOLoss", "PreferenceLossBase"):
        assert getattr(losses, name).__module__ == "mlx_lm_lora_prefplus.losses.api.twinkle"


def test_labels_outside_the_vocabulary_are_seen():
    labels = mx.array([[1, 2, -100], [3, -1, 4]])
    logps = PreferenceLossBase().token_logps({"logits": mx.zeros((2, 3, 4))}, labels)
    expected = [[-math.log(4), -math.log(4), 0.0], [-math.log(4), math.nan, math.nan]]
    np.testing.assert_allclose(np.array(logps), expected, rtol=1e-6)


def test_arguments_of_the_wrong_kind():
    with pytest.raises(ValueError, match="which are integers"):
        CPOLoss()({"labels": mx.zeros((2, 3))}, {"logps": mx.zeros((2, 3))})
    for gamma in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="gamma"):
            SimPOLoss(gamma=gamma)
