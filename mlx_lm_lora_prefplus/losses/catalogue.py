"""The losses of each mode, one row each: the source for `--help`, checks, docs and the training loop."""

from . import rules
from .formulas import absolute, pairs, policy_only, unpaired
from .formulas import ranked as lists
from .loss import Loss

_SMOOTHED = ("beta", "label_smoothing")

DPO: dict[str, Loss] = {
    "sigmoid": Loss(
        pairs.sigmoid, _SMOOTHED, divergence=True, when="the default; label_smoothing where labels are noisy"
    ),
    "hinge": Loss(pairs.hinge, ("beta",), divergence=True, when="stop pushing pairs that are won by the margin 1/β"),
    "ipo": Loss(
        pairs.ipo,
        ("beta",),
        means=True,
        divergence=True,
        when="few or contradictory labels; β sets a target per token",
    ),
    "dpop": Loss(
        pairs.dpop, ("beta", "delta"), when="the chosen log-probs fall during training; the host's form of DPOP"
    ),
    "dpop_paper": Loss(
        pairs.dpop_paper,
        ("beta", "dpop_lambda"),
        defaults={"beta": 0.3},
        when="the chosen log-probs fall during training; the published form, penalty inside the sigmoid",
    ),
    "robust": Loss(
        pairs.robust,
        _SMOOTHED,
        defaults={"label_smoothing": 0.1},
        divergence=True,
        when="a known share of the labels is wrong: label_smoothing is that share",
        advice=(rules.robust_advice,),
    ),
    "exo_pair": Loss(
        pairs.exo_pair,
        _SMOOTHED,
        defaults={"label_smoothing": 1e-3},
        divergence=True,
        when="match the optimal policy in the reverse KL; keeps to what the policy does already",
        check=rules.exo_pair_check,
    ),
    "nca_pair": Loss(
        absolute.nca_pair,
        ("beta",),
        defaults={"beta": 0.01},
        when="keep the likelihood of the chosen from falling",
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
        when="rounds of self-play with fresh pairs",
        advice=(rules.large_beta("sppo_hard", 0.01, "its targets are ±1/(2β) nats. 0.001 is published."),),
    ),
    "aot": Loss(
        pairs.aot,
        _SMOOTHED,
        separable=False,
        when="chosen better as a whole (sorted over the batch), not pair by pair",
        alone="there is nothing to sort, so aot is DPO",
    ),
    "aot_unpaired": Loss(
        pairs.aot_unpaired,
        _SMOOTHED,
        separable=False,
        when="as aot where chosen and rejected answer different prompts",
        alone="there is nothing to sort, so aot_unpaired is DPO",
    ),
    "apo_zero": Loss(
        absolute.apo_zero,
        ("beta",),
        when="the chosen are better than what the model writes: lift them, sink the rejected",
    ),
    "apo_down": Loss(absolute.apo_down, ("beta",), when="the chosen are worse than what the model writes: sink both"),
    "kto_pair": Loss(absolute.apo_zero, ("beta",), when="the same function as apo_zero, under another trainer's name"),
    "discopop": Loss(
        pairs.discopop,
        ("beta", "discopop_tau"),
        defaults={"beta": 0.05},
        divergence=True,
        when="a discovered blend of sigmoid and exponential; strong on chat benchmarks",
    ),
    "sigmoid_norm": Loss(
        pairs.sigmoid,
        _SMOOTHED,
        defaults={"beta": 5.0},
        means=True,
        divergence=True,
        when="answers grow longer during training: log-ratios a token instead of sums",
        advice=(rules.small_beta("sigmoid_norm"),),
    ),
    "cal_dpo": Loss(
        absolute.cal_dpo,
        ("beta",),
        defaults={"beta": 0.002},
        when="the chosen log-probs fall: rewards are held to targets; β small, for the targets are ±1/(2β) nats",
    ),
    "dpo_shift": Loss(
        pairs.dpo_shift, ("beta", "dpo_shift_lambda"), when="the chosen log-probs fall: pull less on the rejected"
    ),
    "r_dpo": Loss(pairs.r_dpo, ("beta", "r_dpo_alpha"), when="answers grow longer during training: length is paid for"),
    "odpo": Loss(
        pairs.odpo,
        ("beta", "odpo_alpha"),
        columns=("chosen_score", "rejected_score"),
        when="scores tell how much better the chosen is",
    ),
    "margin": Loss(pairs.margin, ("beta",), columns=("margin",), when="each pair has its own margin, in nats"),
    "soft_label": Loss(
        pairs.soft_label,
        ("beta",),
        columns=("preference_prob",),
        when="each pair has a probability that the chosen is better",
    ),
    "chi_po": Loss(
        pairs.chi_po,
        ("beta", "chi_po_clip"),
        when="few data that cover little: a chi-squared bound on what is learned",
        check=rules.chi_po_check,
    ),
    "plackett_luce": Loss(
        lists.plackett_luce, ("beta",), rows="ranked", when="more than two responses with scores or ranks"
    ),
    "sft": Loss(None, when="as a part of a list of losses: the NLL of the chosen completions"),
}

CPO: dict[str, Loss] = {
    "sigmoid": Loss(pairs.sigmoid, _SMOOTHED, when="the default; label_smoothing where labels are noisy"),
    "hinge": Loss(pairs.hinge, ("beta",), when="stop pushing pairs that are won by the margin 1/β"),
    "ipo": Loss(pairs.ipo, ("beta",), means=True, when="few or contradictory labels; β sets a target per token"),
    "dpop": Loss(
        pairs.dpop_policy, ("beta", "delta"), when="the rejected completions remain more likely than the chosen"
    ),
    "slic": Loss(policy_only.slic, ("delta",), defaults={"delta": 1.0}, when="a margin in nats on the sums, no β"),
    "simpo": Loss(
        policy_only.simpo,
        ("beta", "simpo_gamma", "label_smoothing"),
        instead=("gamma_beta_ratio",),
        defaults={"beta": 2.0, "simpo_gamma": 1.0},
        means=True,
        when="no reference and no preference for length; with cpo_alpha it is CPO-SimPO",
        advice=(rules.small_beta("simpo"), rules.simpo_advice),
    ),
    "alphapo": Loss(
        policy_only.alphapo,
        ("beta", "simpo_gamma", "alphapo_alpha", "label_smoothing"),
        instead=("gamma_beta_ratio",),
        defaults={"beta": 2.5, "simpo_gamma": 0.1},
        means=True,
        when="simpo with a reward whose shape α bends, against likelihoods that fall",
        advice=(rules.small_beta("alphapo"), rules.simpo_advice, rules.alphapo_advice),
        reward=lambda logps, options: policy_only.alphapo_reward(logps, options.alphapo_alpha),
    ),
    "tpo": Loss(
        lists.tpo,
        _SMOOTHED,
        defaults={"beta": 0.01, "cpo_alpha": 1.0},
        rows="ranked",
        gold=True,
        when="three responses: a gold one to imitate beside a chosen and a rejected one; no SFT stage before",
    ),
    "tpo_l": Loss(
        lists.tpo_l,
        ("beta", "simpo_gamma", "label_smoothing"),
        instead=("gamma_beta_ratio",),
        defaults={"beta": 10.0, "simpo_gamma": 3.0, "cpo_alpha": 0.05},
        means=True,
        rows="ranked",
        gold=True,
        when="as tpo where answers grow longer: log-probs a token, with a margin",
        advice=(rules.small_beta("tpo_l"), rules.simpo_advice),
    ),
    "simper": Loss(policy_only.simper, means=True, when="no hyper-parameter to tune: inverse perplexities"),
}

SIMPO = {name: CPO[name] for name in ("simpo", "alphapo")}

ORPO: dict[str, Loss] = {
    "orpo": Loss(
        policy_only.orpo,
        ("beta",),
        means=True,
        when="fine-tuning and preference in one pass from a base model, no reference",
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
        alone="the estimate of the KL that kto takes is then one row's",
    ),
    "apo_zero_unpaired": Loss(
        unpaired.apo_zero_unpaired, _WEIGHTED, when="as kto, without the KL estimate, so rows are independent"
    ),
}

BCO: dict[str, Loss] = {
    "bco": Loss(
        unpaired.bco, _WEIGHTED, baseline=True, when="thumbs up or down; the running mean of rewards is the bar"
    )
}
