"""PEFT's format: what an independent reading computes is what mlx-lm computes, in both directions."""

import json
import re

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_lm_lora_prefplus.engine.files.adapter_files import load_adapter_weights
from mlx_lm_lora_prefplus.engine.files.peft import read_peft_config, to_mlx
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.export.peft import to_peft
from mlx_lm_lora_prefplus.host import models, trained
from mlx_lm_lora_prefplus.pairs.next_step import from_adapter
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.export.conftest import RANK, SCALE, config_of, put_adapter, save_base

IDS = mx.array([[1, 5, 9, 13, 2, 40]])


def adapted_weight(folder, module: str, weight: np.ndarray) -> np.ndarray | None:
    """The weight of a module as PEFT's documents define it, with NumPy alone; None where the adapter leaves it."""
    config, tensors = config_of(folder), load_file(folder / "adapter_model.safetensors")
    key = f"base_model.model.{module}"
    layer = re.search(rf"\.{config.get('layers_pattern')}\.(\d+)\.", f".{module}.")
    targeted = any(module == target or module.endswith(f".{target}") for target in config["target_modules"])
    if (layers := config.get("layers_to_transform")) is not None:
        targeted = targeted and layer is not None and int(layer[1]) in layers
    assert targeted == (f"{key}.lora_A.weight" in tensors)
    if not targeted:
        return None
    a, b = (tensors[f"{key}.lora_{name}.weight"].astype(np.float64) for name in "AB")
    assert a.shape[0] == b.shape[1] == config["r"]
    alpha = next((v for k, v in config.get("alpha_pattern", {}).items() if module.endswith(k)), config["lora_alpha"])
    new = weight + alpha / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"]) * b @ a
    if config["use_dora"]:
        new *= (tensors[f"{key}.lora_magnitude_vector"] / np.linalg.norm(new, axis=1))[:, None]
    return new


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("keys", [None, ["self_attn.q_proj", "model.layers.0.mlp.up_proj", "lm_head"]])
def test_exported_tensors_mean_the_same_weights(tmp_path, export, dora, keys):
    base = tmp_path / "base"
    plain = dict(save_base(base).named_modules())
    before = {name: np.array(module.weight) for name, module in plain.items() if hasattr(module, "weight")}
    model = put_adapter(save_base(tmp_path / "again"), tmp_path / "adapter", base, dora=dora, keys=keys)
    export(tmp_path / "adapter")
    count = 0
    for name, module in model.named_modules():
        weight = before.get(name)
        if weight is None or weight.ndim != 2 or name.endswith("embed_tokens"):
            continue
        found = adapted_weight(tmp_path / "adapter" / "peft", name, weight.astype(np.float64))
        assert (found is not None) == ("lora_a" in module)
        if found is not None:
            np.testing.assert_allclose(found, np.array(module.fuse().weight), rtol=0, atol=2e-6)
            count += 1
    assert count == (14 if keys is None else 4)


def test_the_config_is_short_where_it_can_be(adapter, export):
    export(adapter, "--base", "owner/base")
    config = config_of(adapter / "peft")
    assert config["lora_alpha"] == SCALE * RANK and config["r"] == RANK
    assert config["base_model_name_or_path"] == "owner/base"
    assert config["layers_to_transform"] == [1, 2] and config["layers_pattern"] == "layers"
    assert config["target_modules"][0] == "mlp.down_proj" and len(config["target_modules"]) == 7


@pytest.mark.parametrize("dora", [False, True])
def test_there_and_back_is_the_same(tmp_path, export, dora):
    put_adapter(save_base(tmp_path / "base"), tmp_path / "a", tmp_path / "base", dora=dora)
    export(tmp_path / "a", "-o", tmp_path / "b")
    export(tmp_path / "b", "--to", "mlx", "-o", tmp_path / "c")
    export(tmp_path / "c", "-o", tmp_path / "d")
    for first, second, file in (("a", "c", "adapters"), ("b", "d", "adapter_model")):
        one, other = (load_file(tmp_path / name / f"{file}.safetensors") for name in (first, second))
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert config_of(tmp_path / "b") == config_of(tmp_path / "d")
    ours = config_of(tmp_path / "c")
    assert ours["num_layers"] == 2 and ours["fine_tune_type"] == ("dora" if dora else "lora")
    assert ours["lora_parameters"]["rank"] == RANK and ours["lora_parameters"]["scale"] == pytest.approx(SCALE)


@pytest.mark.parametrize("dora", [False, True])
def test_a_peft_adapter_is_a_reference_a_start_and_a_policy_to_evaluate(tmp_path, export, dora):
    base = tmp_path / "base"
    tuned = put_adapter(save_base(base), tmp_path / "a", base, dora=dora)
    export(tmp_path / "a")
    expected, folder = np.array(tuned(IDS)), tmp_path / "a" / "peft"

    evaluated = save_base(tmp_path / "b2")
    trained.load_trained(evaluated, str(folder))
    np.testing.assert_allclose(np.array(evaluated(IDS)), expected, atol=1e-5)

    started = save_base(tmp_path / "b3")
    other_scale = {"rank": RANK, "dropout": 0.0, "scale": 20.0}
    settings = {"train_type": "dora" if dora else "lora", "num_layers": 2, "lora_parameters": other_scale}
    run = RunSettings(**settings, resume_adapter_file=str(folder))
    models.add_adapters(started, run)
    file = trained.resume_file(run)
    assert file is not None
    load_adapter_weights(started, file, "resume_adapter_file")
    np.testing.assert_allclose(np.array(started(IDS)), expected, atol=1e-5)

    for place in (folder, folder / "adapter_model.safetensors"):
        assert trained.adapter_file(str(place)) == folder / "adapter_model.safetensors"
    wrong = save_base(tmp_path / "b4")
    models.add_adapters(wrong, run.model_copy(update={"lora_parameters": {**other_scale, "rank": 4}}))
    with pytest.raises(UserError, match=r"does not fit.*of the PEFT adapter: .*num_layers: 2.*rank: 3, scale: 1\.7"):
        load_adapter_weights(wrong, file, "resume_adapter_file")


def test_the_config_of_pairs_goes_on_from_a_peft_adapter(tmp_path, export, adapter):
    export(adapter)
    values = from_adapter(adapter / "peft")
    file = (adapter / "peft" / "adapter_model.safetensors").resolve()
    assert values["resume_adapter_file"] == values["reference_model_path"] == str(file)
    model = save_base(tmp_path / "again")
    keys = ("train_type", "num_layers", "lora_parameters")
    models.add_adapters(model, RunSettings().model_copy(update={key: values[key] for key in keys}))
    load_adapter_weights(model, file, "resume_adapter_file")
    expected = save_base(tmp_path / "other")
    trained.load_trained(expected, str(adapter))
    np.testing.assert_allclose(np.array(model(IDS)), np.array(expected(IDS)), atol=1e-6)


def test_ranks_and_scales_of_their_own_layers(tmp_path, export, adapter):
    """rank_pattern, alpha_pattern and use_rslora come into mlx-lm's one rank and scale."""
    export(adapter)
    folder, rng = adapter / "peft", np.random.default_rng(0)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.self_attn.q_proj.lora_"
    for side, shape in (("A", (1, 32)), ("B", (32, 1))):
        tensors[f"{name}{side}.weight"] = rng.normal(size=shape).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    patterns = {"rank_pattern": {r"layers\.2\.self_attn\.q_proj": 1}, "alpha_pattern": {"k_proj": 2}}
    (folder / "adapter_config.json").write_text(json.dumps({**config_of(folder), **patterns, "use_rslora": True}))
    model = save_base(tmp_path / "again")
    before = {name: np.array(module.weight) for name, module in model.named_modules() if hasattr(module, "weight")}
    trained.load_trained(model, str(folder))
    layer = model.layers[2].self_attn
    for module, alpha, rank in (("q_proj", SCALE * RANK, 1), ("k_proj", 2, RANK), ("v_proj", SCALE * RANK, RANK)):
        a, b = (tensors[f"{name.replace('q_proj', module)}{side}.weight"] for side in "AB")
        expected = before[f"model.layers.2.self_attn.{module}"] + alpha / rank**0.5 * b @ a
        np.testing.assert_allclose(np.array(layer[module].fuse().weight), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "the kind IA3"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights: pissa"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"r": None}, "has no rank r"),
    ],
)
def test_kinds_that_mlx_lm_does_not_have(adapter, export, change, said):
    export(adapter)
    file = adapter / "peft" / "adapter_config.json"
    file.write_text(json.dumps({**config_of(adapter / "peft"), **change}))
    with pytest.raises(UserError, match=f"^reference_model_path: .*{said}"):
        read_peft_config(adapter / "peft", "reference_model_path")


def test_what_cannot_be_written(tmp_path, adapter, export):
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "model_type": "rwkv7"}))
    with pytest.raises(UserError, match=r"of type rwkv7 are not supported.*Supported model types: .*llama"):
        export(adapter)
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_moe"}))
    expert = {
        f"model.layers.0.{module}.lora_{side}": np.zeros((4, 4), np.float32)
        for module in ("mlp.switch_mlp.up_proj", "self_attn.q_proj")
        for side in "ab"
    }
    save_file(expert, adapter / "adapters.safetensors")
    with pytest.raises(UserError, match=r"1 modules on experts.*keys: \[self_attn\.q_proj\]"):
        export(adapter)
    save_file(
        {"model.layers.0.self_attn.q_proj.weight": np.zeros((4, 4), np.float32)}, adapter / "adapters.safetensors"
    )
    with pytest.raises(UserError, match=r"train_type: full.*mlx_lm\.fuse"):
        export(adapter)


@pytest.mark.parametrize("form", ["peft", "gguf"])
def test_each_refusal_names_both_ways_to_fuse(tmp_path, adapter, export, form):
    """`mlx_lm.fuse` drops a vision tower."""
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    both = r"\(mlx_lm\.fuse; for a model with a vision tower, train again with resume: true and fuse: true\)"
    weights = load_file(adapter / "adapters.safetensors")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.lora_"):
        values = {f"{name}{side}": np.zeros((4, 4), np.float32) for side in ("ab" if name.endswith("_") else [""])}
        save_file(values, adapter / "adapters.safetensors")
        with pytest.raises(UserError, match=both):
            export(adapter, "--to", form)
    save_file(weights, adapter / "adapters.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "model_type": "rwkv7"}))
    with pytest.raises(UserError, match=both):
        export(adapter, "--to", form)


def test_experts_are_written_one_by_one():
    rng = np.random.default_rng(0)
    draw = lambda *shape: mx.array(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    weights = {}
    for projection in ("gate_proj", "up_proj", "down_proj"):
        module = f"model.layers.3.block_sparse_moe.switch_mlp.{projection}"
        weights |= {f"{module}.lora_a": draw(4, 2, 8), f"{module}.lora_b": draw(4, 6, 2)}
    router = "model.layers.3.block_sparse_moe.gate"
    weights |= {f"{router}.lora_a": draw(8, 2), f"{router}.lora_b": draw(2, 4)}
    tensors, config = to_peft(weights, {"scale": 3.0, "dropout": 0.1}, "mixtral", "base")
    assert config["target_modules"] == ["gate", "w1", "w2", "w3"] and config["layers_to_transform"] == [3]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 6, 0.0)
    assert len(tensors) == 2 * (3 * 4 + 1)
    name = "base_model.model.model.layers.3.block_sparse_moe.experts.2.w3.lora_A.weight"
    assert np.array_equal(tensors[name], weights["model.layers.3.block_sparse_moe.switch_mlp.up_proj.lora_a"][2])
    assert tensors[f"base_model.model.{router}.lora_A.weight"].shape == (2, 8)
    without_up = {name: value for name, value in weights.items() if ".up_proj." not in name}
    with pytest.raises(UserError, match="3 modules on experts or routers"):
        to_peft(without_up, {"scale": 3.0}, "mixtral", "base")
    with pytest.raises(UserError, match="4 modules on experts or routers"):
        to_peft(weights, {"scale": 3.0}, "qwen2_moe", "base")
    with pytest.raises(UserError, match=r"here contains .*experts\.0\.w1.*merge_and_unload"):
        to_mlx(tensors, config, "mixtral", 4, "here")


def test_the_folder_of_the_adapter_is_not_written_over(tmp_path, adapter, export):
    with pytest.raises(UserError, match="--output: .*contains the adapter of a run"):
        export(adapter, "-o", adapter)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="--output: .*contains the adapter of a run"):
        export(adapter, "--to", "mlx", "-o", tmp_path)
    with pytest.raises(UserError, match="not an adapter folder"):
        export(tmp_path)


def test_a_second_export_replaces_the_first(tmp_path, adapter, export):
    export(adapter, "--to", "mlx", "-o", tmp_path / "out")
    tensors = {name: 2 * value for name, value in load_file(adapter / "adapters.safetensors").items()}
    save_file(tensors, adapter / "adapters.safetensors")
    export(adapter, "--to", "mlx", "-o", tmp_path / "out")
    again = load_file(tmp_path / "out" / "adapters.safetensors")
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
