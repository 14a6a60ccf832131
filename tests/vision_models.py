"""Small random vision-language models in folders that mlx-vlm reads, and rows about coloured squares."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

WORDS = ["What", "is", "it", "A", "red", "green", "blue", "square", ".", *(f"w{i}" for i in range(40))]
SPECIAL = {
    "llava": ["<image>"],
    "qwen2_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
}
SPECIAL["qwen2_5_vl"] = SPECIAL["qwen2_vl"]
KINDS = tuple(SPECIAL)

TEMPLATE = (
    "<s> {{% for m in messages %}}<{{{{ m['role'] }}}}> "
    "{{% if m['content'] is string %}}{{{{ m['content'] }}}} {{% else %}}{{% for item in m['content'] %}}"
    "{{% if item['type'] == 'image' %}}{picture} {{% else %}}{{{{ item['text'] }}}} {{% endif %}}{{% endfor %}}"
    "{{% endif %}}{{% if m['role'] == 'assistant' %}}</s> {{% endif %}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}<assistant> {{% endif %}}"
)

COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}

IMAGE = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
"""Settings of every image processor."""


def _tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<s>", "</s>", "<unk>", "<user>", "<assistant>", *WORDS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    picture = "<image>" if kind == "llava" else "<|vision_start|><|image_pad|><|vision_end|>"
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "extra_special_tokens": SPECIAL[kind]}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE.format(picture=picture), **tokens)


def _text(kind: str, size: int) -> dict[str, Any]:
    common = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
    common |= {"num_key_value_heads": 2, "vocab_size": size, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    if kind == "llava":
        return {"model_type": "llama", **common}
    return {"model_type": kind, **common, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}


def _configs(kind: str, tokens: dict[str, int], size: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The contents of config.json, preprocessor_config.json and processor_config.json."""
    text, eos = _text(kind, size), {"bos_token_id": 0, "eos_token_id": 1, "vocab_size": size, "model_type": kind}
    if kind == "llava":
        vision = {"model_type": "clip_vision_model", "num_hidden_layers": 2, "hidden_size": 16, "patch_size": 4}
        vision |= {"intermediate_size": 32, "num_attention_heads": 2, "image_size": 8}
        config = {**eos, "image_token_index": tokens["<image>"], "text_config": text, "vision_config": vision}
        config |= {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
        image = {**IMAGE, "size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
        processor = {"processor_class": "LlavaProcessor", "patch_size": 4, "num_additional_image_tokens": 1}
        processor |= {"vision_feature_select_strategy": "default", "image_token": "<image>"}
        return config, {**image, "image_processor_type": "CLIPImageProcessor"}, processor
    vision = {"model_type": kind, "depth": 1, "num_heads": 2, "patch_size": 4, "spatial_patch_size": 4}
    vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    if kind == "qwen2_5_vl":
        vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 16}
        vision |= {"fullatt_block_indexes": [0], "image_size": 16}
    config = {**text, **eos, "vision_config": vision, "image_token_id": tokens["<|image_pad|>"]}
    config |= {"video_token_id": tokens["<|video_pad|>"], "vision_start_token_id": tokens["<|vision_start|>"]}
    image = {**IMAGE, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    image |= {"size": {"shortest_edge": 64, "longest_edge": 256}, "image_processor_type": "Qwen2VLImageProcessor"}
    name = "Qwen2VLProcessor" if kind == "qwen2_vl" else "Qwen2_5_VLProcessor"
    return config, {**image, "min_pixels": 64, "max_pixels": 256}, {"processor_class": name}


def write_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """A random model of a kind, with its processor."""
    from mlx.utils import tree_flatten, tree_map
    from mlx_vlm.utils import get_model_and_args, update_module_configs

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(kind)
    tokens = {word: tokenizer.convert_tokens_to_ids(word) for word in SPECIAL[kind]}
    config, image, processor = _configs(kind, tokens, len(tokenizer))
    for name, content in (("config", config), ("preprocessor_config", image), ("processor_config", processor)):
        content = {**content, "processor_class": processor["processor_class"]} if name != "config" else content
        (folder / f"{name}.json").write_text(json.dumps(content))
    tokenizer.save_pretrained(folder)
    mx.random.seed(seed)
    module, _ = get_model_and_args(config)
    built = module.ModelConfig.from_dict(json.loads(json.dumps(config)))
    whole = {"text_config": _text(kind, len(tokenizer)), **config}
    built = update_module_configs(built, module, whole, ["text", "vision"])
    model = module.Model(built)
    weights: Any = tree_map(lambda value: 2 * value, model.parameters())  # so that the tower tells colours apart
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(weights)), metadata={"format": "mlx"})
    return folder


def write_rows(folder: Path, seed: int = 0, swapped: tuple[str, ...] = (), **splits: int) -> Path:
    """Pairs whose chosen completion names the colour of their picture, with noise in the picture.

    swapped: splits where the picture has another colour than the chosen completion says.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    for split, count in splits.items():
        rows, names = [], list(COLOURS)
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour, other = rng.permutation(names)[:2].tolist()
            size = (8, 8 + 4 * int(rng.integers(3)), 3)
            pixels = np.array(COLOURS[other if split in swapped else colour]) + rng.integers(-20, 20, size)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / f"{i}.png")
            prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it"}]}]
            answers = {side: f"A {word} square ." for side, word in (("chosen", colour), ("rejected", other))}
            rows.append({"images": [f"{split}/{i}.png"], "prompt": prompt, **answers})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
