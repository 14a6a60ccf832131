"""What both sides train: the losses with their options, random rows, and the model and its adapters in one folder."""

import json
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_lm_lora_prefplus.bench.architectures import ARCHITECTURES, build
from mlx_lm_lora_prefplus.bench.workloads import SUITE

STEPS, BATCH = 20, 4
LORA = {
    **{"rank": 8, "scale": 10.0},
    **{"modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
}
"""On every linear layer. modules: by PEFT's names."""
EPSILON = 1e-6
"""Of Adam. With 1e-8 weights that get next to no gradient are moved by how it is rounded."""

SPECIAL = ("<pad>", "<unk>", "</s>")
END = SPECIAL.index("</s>")
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 512}
TOY = {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 512, "vocab_size": 32_000}


class Loss(NamedTuple):
    """mode: TRL's trainer. both: options by the name that both sides know. ours, theirs: options of one side alone."""

    mode: str
    name: str
    both: dict[str, Any]
    ours: dict[str, Any] = {}  # noqa: RUF012  (read only)
    theirs: dict[str, Any] = {}  # noqa: RUF012  (read only)


def _dpo(name: str, beta: float = 0.1, **more: Any) -> Loss:
    return Loss("dpo", name, {"loss_type": [name], "beta": beta, **more})


LOSSES = (
    _dpo("sigmoid"),
    _dpo("ipo"),
    _dpo("hinge"),
    _dpo("robust", label_smoothing=0.1),
    _dpo("exo_pair", label_smoothing=0.1),
    _dpo("nca_pair", 0.01),
    _dpo("sppo_hard", 0.01),
    _dpo("aot"),
    _dpo("aot_unpaired"),
    _dpo("apo_zero"),
    _dpo("apo_down"),
    _dpo("discopop", 0.05, discopop_tau=0.05),
    _dpo("sigmoid_norm", 5.0),
    Loss("dpo", "sigmoid and NLL", {"loss_type": ["sigmoid", "sft"], "beta": 0.1}),
    Loss("dpo", "LD-DPO", {"ld_alpha": 0.5, "beta": 0.1}),
    Loss("dpo", "WPO", {"use_weighting": True, "beta": 0.1}),
    Loss("dpo", "forward KL", {"f_divergence_type": "forward_kl", "beta": 0.1}),
    Loss("dpo", "Jensen-Shannon", {"f_divergence_type": "js_divergence", "beta": 0.1}),
    Loss(
        **{"mode": "dpo", "name": "BEMA reference", "both": {"beta": 0.1}},
        ours={"bema_for_ref_model": True, "bema_update_freq": 3, "bema_update_after": 2},
        theirs={"bema": {"update_freq": 3, "update_after": 2}},
    ),
    Loss("cpo", "sigmoid", {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0}),
    Loss("cpo", "hinge", {"loss_type": "hinge", "beta": 0.1, "cpo_alpha": 1.0}),
    Loss("cpo", "ipo", {"loss_type": "ipo", "beta": 0.1, "cpo_alpha": 0.0}),
    Loss("cpo", "simpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
    # TRL's NLL is a mean over tokens.
    Loss("orpo", "orpo", {"beta": 0.1}, {"sft_normalization": "token"}),
    Loss("tpo", "sigmoid", {"beta": 0.1}, {"loss_type": "tpo", "cpo_alpha": 0.7}, {"tpo_alpha": 0.7}),
    Loss(
        **{"mode": "tpo", "name": "tpo-l", "both": {"beta": 2.0}},
        ours={"loss_type": "tpo_l", "simpo_gamma": 0.5, "cpo_alpha": 1.0},
        theirs={"loss_type": "tpo-l", "tpo_l_gamma": 0.5},
    ),
    Loss("kto", "kto", {"loss_type": "kto", "beta": 0.1, "undesirable_weight": 1.3}),
    Loss("kto", "apo_zero_unpaired", {"loss_type": "apo_zero_unpaired", "beta": 0.1, "undesirable_weight": 1.3}),
)


def case(loss: Loss, rows: list[dict], batch_size: int, **more: Any) -> dict[str, Any]:
    """A training for both sides, as JSON."""
    return {
        **{"name": f"{loss.mode} {loss.name}", "mode": loss.mode, "ours": {**loss.both, **loss.ours}},
        **{
            "trl": {**loss.both, **loss.theirs},
            "rows": rows,
            "batch_size": batch_size,
            "steps": len(rows) // batch_size,
        },
        **{"learning_rate": 1e-3, "epsilon": EPSILON, "max_length": 65_536, **more},
    }


def agreement_cases() -> list[dict[str, Any]]:
    """Trainings of all weights with each loss, and of adapters with the first loss of each mode."""
    made, modes = [], set[str]()
    for loss in LOSSES:
        prompt = 1 if loss.mode == "orpo" else 12  # TRL's ORPO takes the NLL of the prompt too; one token has none
        rows = make_rows(loss.mode, SMALL["vocab_size"], STEPS * BATCH, prompt, 16, spread=0.5)
        made.append(case(loss, rows, BATCH))
        if loss.mode not in modes:
            modes.add(loss.mode)
            made.append(case(loss, rows, BATCH, name=f"{loss.mode} {loss.name}, LoRA", lora=LORA))
    return made


TIMED = [LOSSES[0], *(loss for loss in LOSSES if (loss.mode, loss.name) == ("cpo", "sigmoid"))]
TIMED += [loss for loss in LOSSES if loss.mode in ("orpo", "kto")]
"""The losses whose cost is measured: one of DPO and CPO each, ORPO, and those of KTO."""


def speed_cases(vocabulary: int, pairs: int) -> list[dict[str, Any]]:
    """One batch for each loss and form of rows: the lengths of the benchmark's suite, ± 15 %."""
    made = []
    for form, loss in product(("chat", "summary"), TIMED):
        count, shape = 2 * pairs if loss.mode == "kto" else pairs, SUITE[f"dpo-{form}"]
        rows = make_rows(loss.mode, vocabulary, count, shape.prompt, shape.chosen, spread=0.15)
        made.append(case(loss, rows, count, name=f"{loss.mode} {loss.name}, {form}", lora=LORA))
    return made


def run_cases(vocabulary: int, pairs: int) -> list[dict[str, Any]]:
    """Ten steps of DPO and of CPO over rows of a chat, whose lengths spread widely."""
    shape, made = SUITE["dpo-chat"], []
    for loss in TIMED[:2]:
        rows = make_rows(loss.mode, vocabulary, 10 * pairs, shape.prompt, shape.chosen, spread=0.8)
        made.append(case(loss, rows, pairs, name=f"{loss.mode} {loss.name}, 10 steps", lora=LORA))
    return made


def write_run(folder: Path, given: dict[str, Any], memory: str) -> None:
    """Write the rows as text and the config of our command: the run that `theirs.py run` makes of `run.json`."""
    word = lambda token: SPECIAL[token] if token < len(SPECIAL) else f"w{token}"  # noqa: E731
    (folder / "data").mkdir(exist_ok=True)
    with (folder / "data" / "train.jsonl").open("w") as file:
        for row in given["rows"]:
            prompt, *sides = (" ".join(map(word, row[name])) for name in ("prompt", "chosen", "rejected"))
            texts = {"prompt": prompt, "chosen": f" {sides[0]}", "rejected": f" {sides[1]}"}
            file.write(json.dumps(texts) + "\n")
    config = {
        **{"model": str(folder / "model"), "data": str(folder / "data"), "train": True, "train_mode": given["mode"]},
        **{"adapter_path": str(folder / "ours"), "prompt_format": "raw", "max_seq_length": given["max_length"]},
        **{"batch_size": given["batch_size"], "iters": given["steps"], "learning_rate": given["learning_rate"]},
        **{"lora_parameters": {"rank": LORA["rank"], "scale": LORA["scale"], "dropout": 0.0}, "num_layers": -1},
        **{name: value for name, value in given["ours"].items() if name != "loss_type"},
        **{"steps_per_report": 1, "save_every": 10**6, "optimizer": "adam", "memory": memory},
    }
    (folder / "run.yaml").write_text(json.dumps(config))  # JSON is YAML


def make_rows(mode: str, vocabulary: int, count: int, prompt: int, completion: int, spread: float) -> list[dict]:
    """Random token rows, every completion with an end; lengths within ± `spread`."""
    rng = np.random.default_rng(0)

    def draw(mean: int) -> list[int]:
        length = max(1, round(mean * rng.uniform(1 - spread, 1 + spread))) if mean > 1 else 1
        return rng.integers(len(SPECIAL), vocabulary, length).tolist()

    if mode == "kto":
        return [
            {"prompt": draw(prompt), "completion": [*draw(completion), END], "label": float(i % 2)}
            for i in range(count)
        ]
    sides = ("reference", "chosen", "rejected") if mode == "tpo" else ("chosen", "rejected")
    return [{"prompt": draw(prompt), **{side: [*draw(completion), END] for side in sides}} for _ in range(count)]


def save_model(folder: Path, shape: str | dict[str, int], layers: int | None = None) -> int:
    """Write `model`, which torch and MLX both read, and the same adapters for each. Returns the size of the vocabulary.

    shape: a name in `ARCHITECTURES`, of which the first `layers` layers are built, or sizes of a llama.
    """
    mx.random.seed(0)
    if isinstance(shape, str):
        config = {**ARCHITECTURES[shape], "num_hidden_layers": layers or ARCHITECTURES[shape]["num_hidden_layers"]}
        model = build(shape, config["num_hidden_layers"])
    else:
        config = {
            **{"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5},
            **{"max_position_embeddings": 16_384, "tie_word_embeddings": False, "rope_theta": 10_000.0, **shape},
        }
        model = llama.Model(llama.ModelArgs.from_dict(config))
    classes = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    config = {**config, "architectures": [classes[config["model_type"]]], "hidden_act": "silu", "dtype": "float32"}
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps({**config, "eos_token_id": END, "bos_token_id": None}))
    weights = dict[str, mx.array](tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model" / "model.safetensors"), weights, {"format": "pt"})
    _save_tokenizer(folder / "model", config["vocab_size"])
    _save_adapters(folder, model)
    return config["vocab_size"]


def _save_tokenizer(folder: Path, vocabulary: int) -> None:
    """Words between blanks, one for each token: both sides turn text into the ids of the rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), vocabulary))])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def _save_adapters(folder: Path, model: nn.Module) -> None:
    """LoRA factors as they begin: B is 0. MLX stores A and B the other way round than PEFT."""
    linear_to_lora_layers(model, -1, {**LORA, "dropout": 0.0})
    factors = {name: value for name, value in tree_flatten(model.parameters()) if "lora_" in name}
    mx.save_safetensors(str(folder / "adapters.mlx.safetensors"), factors)
    peft = {}
    for name, value in factors.items():
        module, _, factor = name.rpartition(".")
        peft[f"base_model.model.{module}.lora_{factor[-1].upper()}.weight"] = mx.contiguous(value.T)
    mx.save_safetensors(str(folder / "adapters.safetensors"), peft, {"format": "pt"})
