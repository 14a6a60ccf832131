"""What PEFT on torch computes with an exported adapter, where both are installed (extra trl)."""

import mlx.core as mx
import numpy as np
import pytest

from tests.export.conftest import CLASSES, put_adapter, save_base

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("model_type", CLASSES)
def test_logits_are_equal(tmp_path, export, model_type, dora):
    from transformers import AutoModelForCausalLM

    base, ids = tmp_path / "base", np.random.default_rng(0).integers(0, 64, (2, 30))
    ours = put_adapter(save_base(base, model_type), tmp_path / "adapter", base, dora=dora)
    export(tmp_path / "adapter")
    expected = np.array(ours(mx.array(ids)))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = model(torch.tensor(ids)).logits.numpy()
        theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter" / "peft")
        adapted = theirs(torch.tensor(ids)).logits.numpy()
        merged = theirs.merge_and_unload()(torch.tensor(ids)).logits.numpy()
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_allclose(adapted, expected, atol=1e-5)
    np.testing.assert_allclose(merged, expected, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_that_peft_wrote_is_read(tmp_path, dora):
    from transformers import AutoModelForCausalLM

    from mlx_lm_lora_prefplus.host import models

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
    models.load_trained(ours, str(tmp_path / "peft"))
    np.testing.assert_allclose(np.array(ours(mx.array(ids))), expected, atol=2e-5)
