"""docs/papers.md: what is cited, and what comes from it."""

import re
from collections.abc import Iterator
from typing import Any

from mlx_lm_lora_prefplus.host.config.option_fields import option_fields
from mlx_lm_lora_prefplus.host.config.presets import PRESETS
from mlx_lm_lora_prefplus.host.tools.describe import description_of
from tests.paths import ROOT

PACKAGE = ROOT / "mlx_lm_lora_prefplus"
CITED = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")

PAPERS = {
    "1604.06174": "Chen et al. 2016. Training Deep Nets with Sublinear Memory Cost",
    "1804.04235": "Shazeer & Stern 2018. Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
    "2101.03961": "Fedus et al. 2021. Switch Transformers: Scaling to Trillion Parameter Models with Simple and "
    "Efficient Sparsity",
    "2110.02861": "Dettmers et al. 2022. 8-bit Optimizers via Block-wise Quantization",
    "2205.05198": "Korthikanti et al. 2022. Reducing Activation Recomputation in Large Transformer Models",
    "2205.14135": "Dao et al. 2022. FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
    "2305.10425": "Zhao et al. 2023. SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
    "2305.18290": "Rafailov et al. 2023. Direct Preference Optimization: Your Language Model is Secretly a Reward "
    "Model",
    "2307.09288": "Touvron et al. 2023. Llama 2: Open Foundation and Fine-Tuned Chat Models",
    "2309.06657": "Liu et al. 2023. Statistical Rejection Sampling Improves Preference Optimization (RSO)",
    "2309.16240": "Wang et al. 2023. Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse "
    "Divergence Constraints",
    "2310.12036": "Azar et al. 2023. A General Theoretical Paradigm to Understand Learning from Human "
    "Preferences (IPO)",
    "2401.08417": "Xu et al. 2024. Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in "
    "Machine Translation (CPO)",
    "2402.00856": "Ji et al. 2024. Towards Efficient Exact Optimization of Language Model Alignment (EXO)",
    "2402.01306": "Ethayarajh et al. 2024. KTO: Model Alignment as Prospect Theoretic Optimization",
    "2402.01878": "Liu et al. 2024. LiPO: Listwise Preference Optimization through Learning-to-Rank",
    "2402.05369": "Chen et al. 2024. Noise Contrastive Alignment of Language Models with Explicit Rewards (NCA)",
    "2402.10571": "Amini et al. 2024. Direct Preference Optimization with an Offset (ODPO)",
    "2402.13228": "Pal et al. 2024. Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
    "2403.00409": "Chowdhury et al. 2024. Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    "2403.07691": "Hong et al. 2024. ORPO: Monolithic Preference Optimization without Reference Model",
    "2403.19159": "Park et al. 2024. Disentangling Length from Quality in Direct Preference Optimization (R-DPO)",
    "2404.04475": "Dubois et al. 2024. Length-Controlled AlpacaEval: A Simple Way to Debias Automatic Evaluators",
    "2404.04656": "Jung et al. 2024. Binary Classifier Optimization for Large Language Model Alignment (BCO)",
    "2404.09656": "Gorbatovski et al. 2024. Learn Your Reference Model for Real Good Alignment (TR-DPO)",
    "2404.19733": "Pang et al. 2024. Iterative Reasoning Preference Optimization",
    "2405.00675": "Wu et al. 2024. Self-Play Preference Optimization for Language Model Alignment (SPPO)",
    "2405.14734": "Meng et al. 2024. SimPO: Simple Preference Optimization with a Reference-Free Reward",
    "2405.16436": "Liu et al. 2024. Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an "
    "Adversarial Regularizer (RPO)",
    "2405.16681": "Saeidi et al. 2024. Triple Preference Optimization: Achieving Better Alignment using a Single Step "
    "Optimization (TPO)",
    "2406.05882": "Melnyk et al. 2024. Distributional Preference Alignment of LLMs via Optimal Transport (AOT)",
    "2406.08414": "Lu et al. 2024. Discovering Preference Optimization Algorithms with and for Large Language Models "
    "(DiscoPOP)",
    "2406.10957": "Lu et al. 2024. Eliminating Biased Length Reliance of Direct Preference Optimization via "
    "Down-Sampled KL Divergence (SamPO)",
    "2406.11827": "Zhou et al. 2024. WPO: Enhancing RLHF with Weighted Preference Optimization",
    "2407.07880": "Wu et al. 2024. Towards Robust Alignment of Language Models: Distributionally Robustifying Direct "
    "Preference Optimization (Dr. DPO)",
    "2407.13399": "Huang et al. 2024. Correcting the Mythos of KL-Regularization: Direct Alignment without "
    "Overoptimization via Chi-Squared Preference Optimization (χPO)",
    "2408.06266": "D'Oosterlinck et al. 2024. Anchored Preference Optimization and Contrastive Revisions (APO)",
    "2409.06411": "Liu et al. 2024. Length Desensitization in Direct Preference Optimization (LD-DPO)",
    "2409.12191": "Wang et al. 2024. Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any "
    "Resolution",
    "2410.08847": "Razin et al. 2024. Unintentional Unalignment: Likelihood Displacement in Direct Preference "
    "Optimization",
    "2410.20305": "Wang & Hegde 2024. Accelerating Direct Preference Optimization with Prefix Sharing",
    "2411.10442": "Wang et al. 2024. Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed "
    "Preference Optimization (MPO)",
    "2411.15124": "Lambert et al. 2024. Tülu 3: Pushing Frontiers in Open Language Model Post-Training",
    "2412.06464": "Yang et al. 2024. Gated Delta Networks: Improving Mamba2 with Delta Rule",
    "2412.14516": "Xiao et al. 2024. Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment",
    "2501.03884": "Gupta et al. 2025. AlphaPO: Reward Shape Matters for LLM Alignment",
    "2502.00883": "Xiao et al. 2025. SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters",
    "2502.07599": "Yang et al. 2025. DPO-Shift: Shifting the Distribution of Direct Preference Optimization",
    "2508.00180": "Block & Zhang 2025. EMA Without the Lag: Bias-Corrected Iterate Averaging Schemes (BEMA)",
}

HEAD = """\
# Papers

The papers that this package implements or uses. The page of each loss gives the
equation numbers and any difference from the paper.

| paper | arXiv | used in |
|---|---|---|"""


def papers(trainers: list[Any]) -> str:
    """The page."""
    rows = [f"| {title} | [{number}](https://arxiv.org/abs/{number}) | {', '.join(_uses(number, trainers))} |"
            for number, title in sorted(PAPERS.items(), key=lambda item: item[1].casefold())]  # fmt: skip
    return "\n".join([HEAD, *rows]) + "\n"


def _uses(number: str, trainers: list[Any]) -> Iterator[str]:
    found = False
    for trainer in trainers:
        for name in trainer.losses:
            if number in description_of(trainer, name).references:
                found = True
                yield f"[`{name}` ({trainer.mode})](losses/{trainer.mode}-{name}.md)"
    options = {key for t in trainers for key, field in option_fields(t.options).items()
               if number in (field.description or "")}  # fmt: skip
    presets = [name for name, preset in PRESETS.items() if number in preset.source]
    yield from (f"option `{key}`" for key in sorted(options))
    yield from (f"preset [`{name}`](presets.md)" for name in presets)
    if not (found or options or presets):
        yield from (f"`{file}`" for file, numbers in citations().items() if number in numbers)


def citations() -> dict[str, set[str]]:
    """File of the package → the numbers that it cites."""
    return {
        str(path.relative_to(PACKAGE)): found
        for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.toml")])
        if (found := set(CITED.findall(path.read_text("utf-8"))))
    }
