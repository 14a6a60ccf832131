"""Published settings by name: `preset: NAME` in a config file. Values that the user sets take precedence.

Learning rates are as published, mostly for full fine-tuning. LoRA needs larger rates, often ten times as large.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...losses import OPTIONS, loss_names


@dataclass(frozen=True)
class Preset:
    """A named set of published settings.

    name: the value of the key `preset`. mode: the train mode it belongs to.
    values: config key → value.
    source: the paper, and the file or table with the values.
    about: the training that used these settings, in one line.
    """

    name: str
    mode: str
    values: Mapping[str, Any]
    source: str
    about: str


def _simpo(beta: float, ratio: float, rate: float) -> dict[str, Any]:
    return {"loss_type": "simpo", "beta": beta, "gamma_beta_ratio": ratio, "learning_rate": rate}


_SIMPO_README = "arXiv:2405.14734; princeton-nlp/SimPO, README.md"
_HANDBOOK = "huggingface/alignment-handbook, recipes"
_TRL_INDEX = "TRL's paper index"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "dpo",
            "dpo",
            {"loss_type": "sigmoid", "beta": 0.1, "learning_rate": 1e-6},
            f"arXiv:2305.18290, app. B; {_TRL_INDEX}",
            "the DPO paper: all weights, RMSprop, 64 pairs per step",
        ),
        Preset(
            "dpo-zephyr",
            "dpo",
            {"loss_type": "sigmoid", "beta": 0.01, "learning_rate": 5e-7},
            f"{_HANDBOOK}/zephyr-7b-beta/dpo/config_full.yaml",
            "Zephyr 7B on UltraFeedback: all weights, cosine schedule, 1 epoch",
        ),
        Preset(
            "dpo-zephyr-qlora",
            "dpo",
            {"loss_type": "sigmoid", "beta": 0.01, "learning_rate": 5e-6},
            f"{_HANDBOOK}/zephyr-7b-beta/dpo/config_qlora.yaml",
            "Zephyr 7B on UltraFeedback: LoRA of rank 16 on a 4-bit base, 1 epoch",
        ),
        Preset(
            "dpo-smollm2",
            "dpo",
            {"loss_type": "sigmoid", "beta": 0.5, "learning_rate": 1e-6},
            f"{_HANDBOOK}/smollm2/dpo/config.yaml",
            "SmolLM2 1.7B on UltraFeedback: all weights, 3 epochs",
        ),
        Preset(
            "dpo-tulu3",
            "dpo",
            {"loss_type": "sigmoid_norm", "beta": 5.0, "learning_rate": 5e-7},
            "arXiv:2411.15124; allenai/open-instruct, configs/train_configs/tulu3/tulu3_dpo_8b.yaml",
            "Tulu 3 8B: DPO on log-ratios per token; all weights, 128 pairs per step, 1 epoch",
        ),
        Preset(
            "apo-zero",
            "dpo",
            {"loss_type": "apo_zero", "beta": 0.1, "learning_rate": 2e-7},
            f"arXiv:2408.06266, sec. 5.2; {_TRL_INDEX}",
            "the APO paper: 64 pairs per step",
        ),
        Preset(
            "apo-zero-smollm3",
            "dpo",
            {"loss_type": "apo_zero", "beta": 0.05, "learning_rate": 1e-6},
            f"{_HANDBOOK}/smollm3/dpo/apo.yaml",
            "SmolLM3 3B: all weights, 32 pairs per step, 1 epoch",
        ),
        Preset(
            "exo",
            "dpo",
            {"loss_type": "exo_pair", "beta": 0.1, "learning_rate": 1e-6},
            f"arXiv:2402.00856, app. B; {_TRL_INDEX}",
            "the EXO paper: 64 pairs per step",
        ),
        Preset(
            "nca",
            "dpo",
            {"loss_type": "nca_pair", "beta": 0.01, "learning_rate": 5e-6},
            f"arXiv:2402.05369, app. C; {_TRL_INDEX}",
            "the NCA paper: 32 pairs per step",
        ),
        Preset(
            "discopop",
            "dpo",
            {"loss_type": "discopop", "beta": 0.05, "discopop_tau": 0.05, "learning_rate": 5e-7},
            f"arXiv:2406.08414, app. B.1 and E; {_TRL_INDEX}",
            "the DiscoPOP paper: 64 pairs per step",
        ),
        Preset(
            "sppo",
            "dpo",
            {"loss_type": "sppo_hard", "beta": 0.001, "learning_rate": 5e-7},
            "arXiv:2405.00675; uclaml/SPPO, scripts/pipeline.sh",
            "rounds of self-play: all weights, RMSprop; its code uses estimated probabilities, sppo_hard uses 1",
        ),
        Preset(
            "wpo-zephyr",
            "dpo",
            {"loss_type": "sigmoid", "use_weighting": True, "beta": 0.01, "learning_rate": 5e-7},
            "arXiv:2406.11827; wzhouad/WPO, training_configs/mistral-base.yaml",
            "Mistral 7B SFT on UltraFeedback: all weights, 1 epoch",
        ),
        Preset(
            "wpo-llama3",
            "dpo",
            {"loss_type": "sigmoid", "use_weighting": True, "beta": 0.01, "learning_rate": 1e-6},
            "arXiv:2406.11827; wzhouad/WPO, training_configs/llama3_instruct.yaml",
            "Llama 3 8B Instruct on UltraFeedback: all weights, 2 epochs",
        ),
        Preset(
            "mpo-internvl2",
            "dpo",
            {
                "loss_type": ["sigmoid", "bco_pair", "sft"],
                "loss_weights": [0.8, 0.2, 1.0],
                "learning_rate": 5e-6,
            },
            "arXiv:2411.10442; OpenGVLab/InternVL, internvl_chat/shell/internvl2.0_mpo",
            "InternVL2 8B, mixed preference optimisation: all weights, 256 pairs per step, 1 epoch",
        ),
        Preset(
            "iterative-rpo",
            "dpo",
            {"loss_type": "sigmoid", "sft_weight": 1.0, "sft_normalization": "sequence"},
            "arXiv:2404.19733; the weight by TRL's documentation of DPOConfig",
            "DPO plus the NLL of the chosen completions, for chains of thought; without a learning rate",
        ),
        Preset(
            "rpo",
            "dpo",
            {
                **{"loss_type": "sigmoid", "beta": 0.01, "sft_weight": 0.005, "sft_normalization": "sequence"},
                "learning_rate": 5e-7,
            },
            "arXiv:2405.16436",
            "DPO plus a small weight of the chosen completions' NLL, against over-optimisation",
        ),
        Preset(
            "dpop-smaug",
            "dpo",
            {"loss_type": "dpop_paper", "beta": 0.3, "dpop_lambda": 50.0},
            "arXiv:2402.13228",
            "Smaug, DPO-positive; without a learning rate",
        ),
        Preset(
            "cpo-alma",
            "cpo",
            {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0, "learning_rate": 1e-4},
            "arXiv:2401.08417; fe1ixxu/ALMA, runs/cpo_ft.sh",
            "ALMA-13B-R, translation: LoRA, inverse square root schedule, 1 epoch",
        ),
        Preset(
            "cpo-simpo-llama3",
            "cpo",
            {"loss_type": "simpo", "beta": 10.0, "simpo_gamma": 5.4, "cpo_alpha": 0.05, "learning_rate": 1e-6},
            "fe1ixxu/CPO_SIMPO, training_configs/llama-3-8b-instruct-cpo-simpo.yaml",
            "Llama 3 8B Instruct, SimPO with a small NLL weight: all weights, cosine schedule, 1 epoch",
        ),
        Preset(
            "simper-llama3",
            "cpo",
            {"loss_type": "simper", "learning_rate": 1e-6},
            "arXiv:2502.00883; tengxiao1/SimPER, training_configs/llama-3-8b-instruct-simper.yaml",
            "Llama 3 8B Instruct: all weights, cosine schedule, 1 epoch",
        ),
        Preset(
            "simpo-llama3",
            "simpo",
            _simpo(2.5, 0.55, 1e-6),
            _SIMPO_README,
            "Llama 3 8B Instruct: all weights, cosine schedule, 1 epoch",
        ),
        Preset(
            "simpo-llama3-v2",
            "simpo",
            _simpo(10.0, 0.3, 1e-6),
            "arXiv:2405.14734; princeton-nlp/SimPO, training_configs/llama-3-8b-instruct-simpo-v2.yaml",
            "Llama 3 8B Instruct on pairs by the reward model ArmoRM: all weights, 1 epoch",
        ),
        Preset(
            "simpo-llama3-base",
            "simpo",
            _simpo(2.0, 0.5, 6e-7),
            _SIMPO_README,
            "Llama 3 8B after SFT, on UltraFeedback: all weights, cosine schedule, 1 epoch",
        ),
        Preset(
            "simpo-mistral",
            "simpo",
            _simpo(2.5, 0.1, 5e-7),
            _SIMPO_README,
            "Mistral 7B Instruct: all weights, cosine schedule, 1 epoch",
        ),
        Preset(
            "simpo-mistral-base",
            "simpo",
            _simpo(2.0, 0.8, 3e-7),
            _SIMPO_README,
            "Mistral 7B after SFT, on UltraFeedback: all weights, cosine schedule, 1 epoch",
        ),
        Preset(
            "simpo-gemma2",
            "simpo",
            _simpo(10.0, 0.5, 8e-7),
            "arXiv:2405.14734; princeton-nlp/SimPO, training_configs/gemma-2-9b-it-simpo.yaml",
            "Gemma 2 9B it: all weights, cosine schedule, 1 epoch",
        ),
        Preset(
            "alphapo-mistral",
            "simpo",
            {"loss_type": "alphapo", "beta": 2.5, "alphapo_alpha": 0.25, "simpo_gamma": 0.1, "learning_rate": 7e-7},
            f"arXiv:2501.03884, table 3; {_TRL_INDEX}",
            "Mistral 7B Instruct; γ is read as an absolute value, as in TRL",
        ),
        Preset(
            "orpo-mistral",
            "orpo",
            {"beta": 0.1, "learning_rate": 5e-6},
            "arXiv:2403.07691; xfactlab/orpo, scripts/run_mistral_orpo_beta.sh",
            "Mistral-ORPO-β 7B from the base model: all weights, inverse square root schedule, 5 epochs",
        ),
        Preset(
            "orpo-zephyr",
            "orpo",
            {"beta": 0.05, "learning_rate": 5e-6},
            f"{_HANDBOOK}/zephyr-141b-A35b/orpo/config_full.yaml",
            "Zephyr 141B-A35B from the base model: all weights, inverse square root schedule, 3 epochs",
        ),
        Preset(
            "kto",
            "kto",
            {"loss_type": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
            "arXiv:2402.01306; ContextualAI/HALOs, config/loss/kto.yaml",
            "the KTO authors' defaults, for equally many desirable and undesirable rows; without a learning rate",
        ),
        Preset(
            "bco",
            "bco",
            {"loss_type": "bco", "beta": 0.01, "learning_rate": 5e-7},
            f"arXiv:2404.04656, app. C; {_TRL_INDEX}",
            "the BCO paper: 128 rows per step",
        ),
    )
}
"""Name → preset."""


TWO_NAMES = {"simpo_gamma": "gamma_beta_ratio", "gamma_beta_ratio": "simpo_gamma"}
"""Key → another name of the same setting. Only one of the two names can be set."""


def values_beside(preset: Preset, user_values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a preset that the user's values do not replace.

    A key of the user replaces the preset's key of the same meaning. If the user chooses another loss, that loss keeps
    its own defaults, because the preset's β, margin and weights were published for the preset's loss.
    """
    dropped = {*user_values, *(TWO_NAMES[key] for key in user_values if key in TWO_NAMES)}
    loss_type = user_values.get("loss_type", user_values.get("dpo_cpo_loss_type"))
    if loss_type is not None and loss_names(loss_type) != loss_names(preset.values.get("loss_type", preset.mode)):
        table = OPTIONS[preset.mode].table
        dropped |= {"loss_type", "loss_weights"}
        dropped |= {key for row in table.values() for key in (*row.options, *row.instead)}
    return {key: value for key, value in preset.values.items() if key not in dropped}
