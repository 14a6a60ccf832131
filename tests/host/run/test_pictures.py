"""Runs on rows with pictures, from a folder of files to adapters that mlx-vlm reads."""

import json
import re
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.data.sources.pictures import Picture
from mlx_lm_lora_prefplus.data.tokens.pictures import PictureTokens, as_items
from mlx_lm_lora_prefplus.engine.train import loop
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.evaluation.evaluate import Judging, evaluate
from tests.vision_models import KINDS, write_model, write_rows

mlx_vlm = pytest.importorskip("mlx_vlm", reason="needs the extra `vision`")
LN_2 = float(np.log(2))


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    return write_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return write_model("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture
def look(go, tmp_path):
    """`go`, on rows with pictures."""
    write_rows(tmp_path / "pictures", train=6, valid=3, test=3)

    def run(model, **changes):
        return go(**{"model": str(model), "data": "pictures", "batch_size": 2, "adapter_path": "adapters", **changes})

    return run


def weights(folder="adapters"):
    return mx.load(str(Path(folder) / "adapters.safetensors"))


def test_a_policy_begins_at_its_reference(look, folder):
    out, told = look(folder, num_layers=1)
    assert "Rows, train: 6 of 6" in out and "; 6 pictures; tokens: " in out
    assert "the prompt once for its completions" in out
    assert told.val[0]["val_loss"] == pytest.approx(LN_2, abs=1e-6)
    assert all(name.startswith("language_model.model.layers.1.") for name in weights())
    look(folder, num_layers=1, engine="plain", adapter_path="plain")
    for name, value in weights("plain").items():
        assert mx.allclose(weights()[name], value, atol=2e-4)


@pytest.mark.slow
def test_what_is_learnt_is_in_the_pictures(look, llava, tmp_path):
    """With the colours of other pictures in train, the held-out rows are predicted worse than before."""
    losses = {}
    for name, swapped in (("true", ()), ("swapped", ("train",))):
        write_rows(tmp_path / name, swapped=swapped, train=48, valid=24)
        changes = {"data": name, "adapter_path": f"adapters-{name}", "iters": 50, "batch_size": 8}
        _, told = look(llava, **changes, learning_rate=1e-2, steps_per_eval=50)
        losses[name] = [info["val_loss"] for info in told.val]
    assert losses["true"][0] == pytest.approx(LN_2, abs=1e-6)
    assert losses["true"][-1] < 0.3 and losses["swapped"][-1] > 0.5


def sees_the_pictures(look, model, mode) -> None:
    _, told = look(model, train_mode=mode, iters=2)
    own = weights()
    write_rows(Path("pictures"), seed=1, train=6, valid=3)  # other pictures in files of the same names
    look(model, train_mode=mode, iters=2)
    assert np.isfinite(told.val[-1]["val_loss"])
    assert any(not mx.array_equal(value, weights()[name]) for name, value in own.items())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cpo", "orpo", "bco"])
def test_other_modes_see_the_pictures(look, llava, mode):
    sees_the_pictures(look, llava, mode)


@pytest.mark.slow
def test_kto_sees_the_pictures(look, folder):
    """Beside the completions of other rows too, whatever the kind of model."""
    sees_the_pictures(look, folder, "kto")


def test_a_resumed_run_ends_with_the_same_bytes(look, llava, monkeypatch):
    look(llava, adapter_path="alone")

    class Dead(Exception):
        pass

    real = loop.Loop.optimizer_step

    def step(self, bar):
        if self.state.counters.iteration >= 2:
            raise Dead
        real(self, bar)

    with monkeypatch.context() as patch, pytest.raises(Dead):
        patch.setattr(loop.Loop, "optimizer_step", step)
        look(llava)
    out, _ = look(llava, resume=True)
    assert "Resuming after iteration 2" in out
    assert Path("adapters/adapters.safetensors").read_bytes() == Path("alone/adapters.safetensors").read_bytes()


def test_rows_and_reference_are_cached_until_a_picture_changes(look, llava):
    from PIL import Image

    look(llava)
    assert "9 of 9 rows from the cache" in look(llava)[0]
    Image.new("RGB", (8, 8), "white").save("pictures/train/0.png")
    assert re.search(r"[03] of 9 rows from the cache", look(llava)[0])  # those of valid are unchanged


def test_pictures_in_the_columns_of_datasets_give_the_same_bytes(look, llava):
    """As bytes in a Parquet file, and as paths in a folder of `save_to_disk`."""
    from datasets import Dataset, DatasetDict, Image, Sequence

    look(llava, val_batches=0)
    expected = Path("adapters/adapters.safetensors").read_bytes()
    rows = [json.loads(line) for line in Path("pictures/train.jsonl").read_text().splitlines()]
    files = [[Path("pictures", path).absolute() for path in row.pop("images")] for row in rows]
    forms = {"parquet": lambda file: {"bytes": file.read_bytes(), "path": None}, "saved": str}
    for data, form in forms.items():
        with_images = [{**row, "images": [form(file) for file in own]} for row, own in zip(rows, files, strict=True)]
        table = Dataset.from_list(with_images).cast_column("images", Sequence(Image()))
        if data == "saved":
            DatasetDict({"train": table}).save_to_disk(data)
        else:
            Path(data).mkdir()
            table.to_parquet(f"{data}/train.parquet")
        look(llava, val_batches=0, data=data, adapter_path=f"adapters-{data}")
        assert Path(f"adapters-{data}/adapters.safetensors").read_bytes() == expected


def test_full_training_leaves_the_tower_as_it_is(look, llava):
    _, told = look(llava, train_type="full", fuse=True)
    assert told.val[0]["val_loss"] == pytest.approx(LN_2, abs=1e-6)
    assert all(name.startswith("language_model.") for name in weights())
    fused, base = mx.load("adapters/model.safetensors"), mx.load(str(llava / "model.safetensors"))
    same = {name: mx.array_equal(fused[name], value).item() for name, value in base.items()}
    assert all(same[name] == (not name.startswith("language_model.")) for name in same if "rope" not in name)


def test_mlx_vlm_reads_the_adapters_and_the_fused_model(look, folder):
    from mlx_vlm.utils import load

    look(folder, fuse=True, learning_rate=1e-2)
    logits = {}
    for name, path, adapters in (("base", folder, None), ("adapters", folder, "adapters"), ("fused", "adapters", None)):
        model, processor = load(str(path), adapter_path=adapters)
        inputs = dict(processor(text=[f"<s> <user> {processor.image_token}"], images=[white()]))
        del inputs["attention_mask"]
        logits[name] = model(inputs.pop("input_ids"), mask=None, **inputs).logits
    assert mx.allclose(logits["adapters"], logits["fused"], atol=1e-4)
    assert mx.abs(logits["adapters"] - logits["base"]).max().item() > 1e-2


def test_a_finished_run_is_fused_with_its_tower_by_resuming_it(look, llava):
    """As the model card and the errors of `export` advise."""
    look(llava)
    assert not Path("adapters/model.safetensors").exists()
    look(llava, resume=True, fuse=True)
    assert set(mx.load("adapters/model.safetensors")) >= {
        name for name in mx.load(str(llava / "model.safetensors")) if "vision_tower" in name
    }


def test_fusing_that_fails_names_what_keeps_the_tower(look, llava, monkeypatch):
    def full(*_):
        raise RuntimeError("Unable to write 138 bytes")

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="138 bytes.*Then train again with resume: true"),
    ):
        patch.setattr("mlx_lm_lora_prefplus.host.vision.save_whole", full)
        look(llava, fuse=True)
    monkeypatch.setattr("mlx_lm_lora_prefplus.host.output.fuse.total_memory", lambda: 1000)
    with pytest.raises(UserError, match="--no-fuse .mlx_vlm can load the adapters"):
        look(llava, fuse=True, adapter_path="other")


def test_a_column_of_videos_is_named(look, llava):
    file = Path("pictures/train.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "videos": ["a.mp4"]}) + "\n" for row in rows))
    out, _ = look(llava)
    assert "column videos is not used, because the model sees text and pictures" in " ".join(out.split())


def white():
    from PIL import Image

    return Image.new("RGB", (12, 8), "white")


def test_held_out_rows_are_scored_with_their_pictures(look, llava):
    look(llava)
    arguments = ["--model", str(llava), "--adapter-path", "adapters", "--data", "pictures"]
    assert evaluate(arguments, Judging())["rows"]["n"] == 3
    with pytest.raises(UserError, match="answers to rows with pictures are not generated"):
        evaluate(arguments, Judging(judge="reward"))


@pytest.mark.parametrize(
    "changes", [{"load_in_4bits": True}, {"efficient_long_context": True}, {"sample_prompts": 2}, {"streaming": True}]
)
def test_settings_that_pictures_cannot_be_used_with(look, llava, changes):
    with pytest.raises(UserError, match=f"{next(iter(changes))}: cannot be used with pictures. Remove it"):
        look(llava, **changes)


def test_without_mlx_vlm_the_extra_is_named(look, llava, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx_vlm", None)
    with pytest.raises(UserError, match=r"need mlx-vlm: pip install 'mlx-lm-lora-prefplus\[vision\]'"):
        look(llava)


def test_rows_of_text_are_trained_by_mlx_lm(look, tmp_path, monkeypatch):
    """Also where mlx-vlm is absent."""
    model = write_model("qwen2_vl", tmp_path / "qwen")
    monkeypatch.setitem(sys.modules, "mlx_vlm", None)
    (tmp_path / "text").mkdir()
    row = {"prompt": "What is it", "chosen": "A red square", "rejected": "A blue square"}
    (tmp_path / "text" / "train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "prompt": "A"}) + "\n")
    look(model, data="text", val_batches=0)
    assert weights()


class Words:
    """A processor for which a picture becomes as many tokens as it has columns."""

    image_token = "<image>"

    def tokenizer(self, text):
        return {"input_ids": [0, *(7 for _ in range(text.count("<image>"))), 1]}

    def __call__(self, text, images):
        return {"input_ids": mx.array([[0, *[7] * images[0].width, 1]])}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return "".join(item.get("text", "<image>") for message in messages for item in message["content"])


def test_each_placeholder_becomes_the_tokens_of_its_picture(tmp_path):
    white().save(tmp_path / "a.png")
    white().resize((2, 2)).save(tmp_path / "b.png")
    pictures = [Picture(str(tmp_path / "a.png")), Picture(None, (tmp_path / "b.png").read_bytes())]
    tokens = PictureTokens(Words(), 7, "")
    assert tokens.expanded([5, 7, 6, 7], pictures, "") == [5, *[7] * 12, 6, 7, 7]
    assert tokens.text_for(Words()) is None and tokens.text_for(object()) == "<image>"
    assert tokens.shortened("a <image><image><image> b <image>") == "a <image>×3 b <image>"
    with pytest.raises(UserError, match="row 3: the model's chat template wrote 1 picture tokens for 2 pictures"):
        tokens.expanded([5, 7], pictures, "rows, row 3")
    with pytest.raises(UserError, match="row 3: a completion contains <image>"):
        tokens.check_none([[5], [7]], "rows, row 3")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"row 3: the picture .*a.png cannot be read"):
        PictureTokens(Words(), 7, "").expanded([7, 7], pictures, "rows, row 3")


def test_a_picture_that_the_processor_rejects_is_named(tmp_path):
    class Strict(Words):
        def __call__(self, text, images):
            raise ValueError("absolute aspect ratio must be smaller than 200.")

    white().resize((500, 2)).save(tmp_path / "a.png")
    said = r"rows, row 3: the model's processor rejects the picture .*a.png \(500×2 pixels\): absolute aspect ratio"
    with pytest.raises(UserError, match=said):
        PictureTokens(Strict(), 7, "").expanded([7], [Picture(str(tmp_path / "a.png"))], "rows, row 3")


def test_marks_become_items_or_text():
    messages = [{"role": "user", "content": "Look \ufffc and \ufffc"}, {"role": "assistant", "content": "Yes."}]
    items = [{"type": "text", "text": "Look "}, {"type": "image"}, {"type": "text", "text": " and "}, {"type": "image"}]
    assert as_items(messages) == [{"role": "user", "content": items}, messages[1]]
    assert as_items(messages, "<image>")[0]["content"] == "Look <image> and <image>"


def test_a_prompt_with_pictures_is_never_cut(look, llava):
    """Each prompt has 10 tokens: no room for a completion drops the row, and room for a part of it keeps the prompt."""
    with pytest.raises(UserError, match="none of the 6 rows can be used.*prompt as long as max_seq_length: 6"):
        look(llava, max_seq_length=10)
    out, _ = look(llava, max_seq_length=12, truncation="keep_end")
    assert "truncated: 6" in out and re.search(r"tokens: 60 prompt, 12 chosen", out)
