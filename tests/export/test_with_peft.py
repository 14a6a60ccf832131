"""What PEFT on torch computes with an exported adapter, where both are installed (extra trl)."""

import inspect
import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_lm_lora_prefplus.engine.files.hub_names import EXPERTS, SAME, is_expert
from tests.engine import model_zoo
from tests.export.conftest import CLASSES, SIZES, put_adapter, save_base

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("model_type", CLASSES)
def test_logits_are_equal(tmp_path, export, model_type, dora):
    base, ids = tmp_path / "base", np.random.default_rng(0).integers(0, 64, (2, 30))
    ours = put_adapter(save_base(base, model_type), tmp_path / "adapter", base, dora=dora)
    export(tmp_path / "adapter")
    assert_equal_in_peft(ours, base, tmp_path / "adapter", ids)


def assert_equal_in_peft(ours, base, folder, ids):
    """The logits of a model with its adapter are those of PEFT with the exported one, merged and not."""
    from transformers import AutoModelForCausalLM

    expected = np.array(ours(mx.array(ids)))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = model(torch.tensor(ids)).logits.numpy()
        theirs = peft.PeftModel.from_pretrained(model, folder / "peft")
        adapted = theirs(torch.tensor(ids)).logits.numpy()
        merged = theirs.merge_and_unload()(torch.tensor(ids)).logits.numpy()
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_allclose(adapted, expected, atol=1e-5)
    np.testing.assert_allclose(merged, expected, atol=1e-5)


OF_EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
    **{"norm_topk_prob": True, "mlp_only_layers": []},
}


@pytest.mark.parametrize("layers", [-1, 2])
@pytest.mark.parametrize("model_type", EXPERTS)
def test_logits_with_adapters_on_experts_are_equal(tmp_path, export, model_type, layers):
    """Without keys mlx-lm adapts experts and routers too."""
    from mlx_lm.utils import load_model
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    base, ids = tmp_path / "base", np.random.default_rng(0).integers(0, 64, (2, 30))
    torch.manual_seed(0)
    sizes = {**SIZES, **OF_EXPERTS}
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**sizes)).float().save_pretrained(base)
    (base / "config.json").write_text(json.dumps({**json.loads((base / "config.json").read_text()), **sizes}))
    ours = put_adapter(load_model(base)[0], tmp_path / "adapter", base, layers=layers)
    export(tmp_path / "adapter")
    assert_equal_in_peft(ours, base, tmp_path / "adapter", ids)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_that_peft_wrote_is_read(tmp_path, dora):
    from transformers import AutoModelForCausalLM

    base, ids = tmp_path / "base", np.random.default_rng(0).integers(0, 64, (2, 30))
    ours = save_base(base)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_dora=dora,
        use_rslora=True,
        target_modules=["q_proj", "down_proj", "lm_head"],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"down_proj": 3},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.save_pretrained(tmp_path / "peft")
    with torch.no_grad():
        expected = model.eval()(torch.tensor(ids)).logits.numpy()
    from mlx_lm_lora_prefplus.host import trained

    trained.load_trained(ours, str(tmp_path / "peft"))
    np.testing.assert_allclose(np.array(ours(mx.array(ids))), expected, atol=2e-5)


@pytest.mark.parametrize("model_type", sorted(SAME - {"mistral"}))
def test_linear_layers_have_the_names_of_transformers(model_type):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    ours = {name: layer for name, layer in model_zoo.build(model_type).named_modules() if isinstance(layer, nn.Linear)}
    sizes = {**model_zoo.SIZES, **model_zoo.OVERRIDES.get(model_type, {}), "pad_token_id": 0}
    sizes["sliding_window_pattern"] = 2  # mlx-lm's exaone4 takes letters
    kind = CONFIG_MAPPING[model_type]
    known = {name: value for name, value in sizes.items() if name in inspect.signature(kind).parameters}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(kind(**known))
    theirs = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    checked = [name for name in ours if not is_expert(name)]
    assert checked
    for name in checked:
        assert tuple(theirs[name].weight.shape) == ours[name].weight.shape
