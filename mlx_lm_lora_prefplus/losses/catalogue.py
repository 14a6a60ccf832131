"""The losses of each mode, one row each: the source for `--help`, checks, docs and the training loop."""

from dataclasses import replace

from . import rules
from .formulas import absolute, pairs, policy_only, unpaired
from .formulas import ranked as lists
from .loss import Loss

_SMOOTHED = ("beta", "label_smoothing")

DPO: dict[str, Loss] = {
    "sigmoid": Loss(
        pairs.sigmoid, _SMOOTHED, divergence=True, when="the default; set label_smoothing if labels are noisy"
    ),
    "hinge": Loss(
        pairs.hinge, ("beta",), divergence=True, when="no more updates from pairs that are separated by the margin 1/β"
    ),
    "ipo": Loss(
        pairs.ipo,
        ("beta",),
        means=True,
        divergence=True,
        when="few or contradictory labels; β sets a target for the difference per token",
    ),
    "dpop": Loss(
        pairs.dpop, ("beta", "delta"), when="the chosen log-probs fall during training; the host's form of DPOP"
    ),
    "dpop_paper": Loss(
        pairs.dpop_paper,
        ("beta", "dpop_lambda"),
        defaults={"beta": 0.3},
        when="the chosen log-probs fall during training; DPOP as published, with the penalty inside the sigmoid",
    ),
    "robust": Loss(
        pairs.robust,
        _SMOOTHED,
        defaults={"label_smoothing": 0.1},
        divergence=True,
        when="a known share of the labels is wrong; set label_smoothing to that share",
        advice=(rules.robust_advice,),
    ),
    "exo_pair": Loss(
        pairs.exo_pair,
        _SMOOTHED,
        defaults={"label_smoothing": 1e-3},
        divergence=True,
        when="stay close to what the policy already does (minimises the reverse KL to the optimal policy)",
        check=rules.exo_pair_check,
    ),
    "nca_pair": Loss(
        absolute.nca_pair,
        ("beta",),
        defaults={"beta": 0.01},
        when="keep the likelihood of the chosen completions from falling",
        advice=(rules.large_beta("nca_pair", 0.05, "0.01 is published."),),
    ),
    "bco_pair": Loss(
        absolute.bco_pair,
        ("beta",),
        baseline=True,
        when="pairs whose completions can be judged separately; also a part of MPO",
    ),
    "sppo_hard": Loss(
        absolute.sppo_hard,
        ("beta",),
        defaults={"beta": 0.001},
        when="several rounds with new pairs from the current policy (self-play)",
        advice=(rules.large_beta("sppo_hard", 0.01, "its targets are ±1/(2β) nats. 0.001 is published."),),
    ),
    "aot": Loss(
        pairs.aot,
        _SMOOTHED,
        separable=False,
        when="the chosen completions are better as a group, but not in every pair (compares sorted batches)",
        alone="there is nothing to sort, so aot is DPO",
    ),
    "aot_unpaired": Loss(
        pairs.aot_unpaired,
        _SMOOTHED,
        separable=False,
        when="like aot, when chosen and rejected answer different prompts",
        alone="there is nothing to sort, so aot_unpaired is DPO",
    ),
    "apo_zero": Loss(
        absolute.apo_zero,
        ("beta",),
        when="the chosen completions are better than what the model writes: raises them and lowers the rejected",
    ),
    "apo_down": Loss(
        absolute.apo_down, ("beta",), when="the chosen completions are worse than what the model writes: lowers both"
    ),
    "kto_pair": Loss(
        absolute.apo_zero, ("beta",), when="the same function as apo_zero, under the name in other trainers"
    ),
    "discopop": Loss(
        pairs.discopop,
        ("beta", "discopop_tau"),
        defaults={"beta": 0.05},
        divergence=True,
        when="a blend of logistic and exponential loss, found by automatic search; strong on chat benchmarks",
    ),
    "sigmoid_norm": Loss(
        pairs.sigmoid,
        _SMOOTHED,
        defaults={"beta": 5.0},
        means=True,
        divergence=True,
        when="answers grow longer during training: compares log-ratios per token instead of sums",
        advice=(rules.small_beta("sigmoid_norm"),),
    ),
    "cal_dpo": Loss(
        absolute.cal_dpo,
        ("beta",),
        defaults={"beta": 0.002},
        when="the chosen log-probs fall: fixes the targets of both log-ratios at ±1/(2β) nats; use a small β",
    ),
    "dpo_shift": Loss(
        pairs.dpo_shift,
        ("beta", "dpo_shift_lambda"),
        when="the chosen log-probs fall: gives the rejected completions less weight",
    ),
    "r_dpo": Loss(
        pairs.r_dpo, ("beta", "r_dpo_alpha"), when="answers grow longer during training: adds a penalty for length"
    ),
    "odpo": Loss(
        pairs.odpo,
        ("beta", "odpo_alpha"),
        columns=("chosen_score", "rejected_score"),
        when="the data has scores that show how much better the chosen completion is",
    ),
    "margin": Loss(pairs.margin, ("beta",), columns=("margin",), when="the data has a margin for each pair, in nats"),
    "soft_label": Loss(
        pairs.soft_label,
        ("beta",),
        columns=("preference_prob",),
        when="the data has, for each pair, the probability that the chosen completion is better",
    ),
    "chi_po": Loss(
        pairs.chi_po,
        ("beta", "chi_po_clip"),
        when="few data with little variety: a chi-squared penalty against over-optimisation",
        check=rules.chi_po_check,
    ),
    "plackett_luce": Loss(
        lists.plackett_luce, ("beta",), rows="ranked", when="more than two responses per prompt, with scores or ranks"
    ),
    "sft": Loss(None, when="in a list of losses: adds the NLL of the chosen completions"),
}

CPO: dict[str, Loss] = {
    **{name: replace(DPO[name], divergence=False) for name in ("sigmoid", "hinge", "ipo")},
    "dpop": Loss(
        pairs.dpop_policy, ("beta", "delta"), when="the rejected completions remain more likely than the chosen"
    ),
    "slic": Loss(
        policy_only.slic,
        ("delta",),
        defaults={"delta": 1.0},
        when="a fixed margin in nats between summed log-probs, without β",
    ),
    "simpo": Loss(
        policy_only.simpo,
        ("beta", "simpo_gamma", "label_smoothing"),
        instead=("gamma_beta_ratio",),
        defaults={"beta": 2.0, "simpo_gamma": 1.0},
        means=True,
        when="no reference and no length bias; with cpo_alpha it is CPO-SimPO",
        advice=(rules.small_beta("simpo"), rules.simpo_advice),
    ),
    "alphapo": Loss(
        policy_only.alphapo,
        ("beta", "simpo_gamma", "alphapo_alpha", "label_smoothing"),
        instead=("gamma_beta_ratio",),
        defaults={"beta": 2.5, "simpo_gamma": 0.1},
        means=True,
        when="simpo, when likelihoods fall: α changes the shape of its reward",
        advice=(rules.small_beta("alphapo"), rules.simpo_advice, rules.alphapo_advice),
        reward=lambda logps, options: policy_only.alphapo_reward(logps, options.alphapo_alpha),
    ),
    "tpo": Loss(
        lists.tpo,
        _SMOOTHED,
        defaults={"beta": 0.01, "cpo_alpha": 1.0},
        rows="ranked",
        gold=True,
        when="three responses per prompt: a gold one to imitate, a chosen and a rejected one; needs no SFT before",
    ),
    "tpo_l": Loss(
        lists.tpo_l,
        ("beta", "simpo_gamma", "label_smoothing"),
        instead=("gamma_beta_ratio",),
        defaults={"beta": 10.0, "simpo_gamma": 3.0, "cpo_alpha": 0.05},
        means=True,
        rows="ranked",
        gold=True,
        when="like tpo, when answers grow longer: uses log-probs per token and a margin",
        advice=(rules.small_beta("tpo_l"), rules.simpo_advice),
    ),
    "simper": Loss(policy_only.simper, means=True, when="no hyper-parameter to tune: compares inverse perplexities"),
}

SIMPO = {name: CPO[name] for name in ("simpo", "alphapo")}

ORPO: dict[str, Loss] = {
    "orpo": Loss(
        policy_only.orpo,
        ("beta",),
        means=True,
        when="fine-tuning and preference tuning of a base model in one run, without a reference",
    )
}

_WEIGHTED = ("beta", "desirable_weight", "undesirable_weight")

KTO: dict[str, Loss] = {
    "kto": Loss(
        unpaired.kto,
        _WEIGHTED,
        mismatched=True,
        separable=False,
        when="thumbs up or down instead of pairs",
        alone="kto estimates the KL divergence from a single row",
    ),
    "apo_zero_unpaired": Loss(
        unpaired.apo_zero_unpaired, _WEIGHTED, when="like kto without its KL estimate, so that rows are independent"
    ),
}

BCO: dict[str, Loss] = {
    "bco": Loss(
        unpaired.bco,
        _WEIGHTED,
        baseline=True,
        when="thumbs up or down; compares each reward with the running mean of all rewards",
    )
}
