"""Pictures through the engine: equal to mlx-vlm's own forward of each row, with one run of the tower a pair."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.data.batches.slicing import slice_batch
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.vision.encode import (
    _moves,
    check_exact,
    forget_positions,
    picture_token,
    with_pictures,
)
from mlx_lm_lora_prefplus.engine.vision.model import as_language_model
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.plugin.protocol import PICTURE
from tests.conftest import with_lora
from tests.vision_models import KINDS, write_model

mlx_vlm = pytest.importorskip("mlx_vlm", reason="needs the extra `vision`")
WEIGHTS = [1.0, -0.5, 0.3, 0.7, -1.2, 2.0]


@pytest.fixture(params=KINDS)
def seeing(request, tmp_path):
    return _model(request.param, tmp_path)


def _model(kind, folder):
    from mlx_vlm.utils import load

    model = as_language_model(*load(str(write_model(kind, folder / kind))))
    return with_lora(model).train()


def images(*sizes):
    from PIL import Image

    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)) for width, height in sizes]


def rows_of(model):
    """A prompt with one picture, one with two of different sizes, one with none; and completions of uneven lengths."""
    shown = [images((16, 16)), images((16, 16), (8, 24)), []]  # of 2 × 2 and 1 × 3 parts
    rows = []
    for i, own in enumerate(shown):
        prompt = [0, 3, 5 + i]
        for image in own:
            ids = model.processor(text=[model.processor.image_token], images=[image])["input_ids"].tolist()[0]
            prompt += [getattr(model.config, "vision_start_token_id", 6), *ids, 7]  # where positions begin to move
        answers = {"chosen": [9, 10, 11], "rejected": [12, 13, 14, 8][: i + 2]}
        rows.append({"prompt": [*prompt, *range(8, 9 + i)], **answers})
    return rows, shown


def own_logps(model, rows, shown):
    """Of each completion, by mlx-vlm's own forward of its row alone."""
    logps = []
    for side in ("chosen", "rejected"):
        for row, own in zip(rows, shown, strict=True):
            forget_positions(model)
            ids, start, inputs = mx.array([row["prompt"] + row[side]]), len(row["prompt"]), {"pixel_values": None}
            if own:
                inputs = dict(model.processor(text=[model.processor.image_token * len(own)], images=own))
                del inputs["input_ids"], inputs["attention_mask"]
            logits = model.whole(model, ids, mask=None, **inputs).logits[0, start - 1 : -1]
            logits -= mx.logsumexp(logits, axis=-1, keepdims=True)
            logps.append(mx.take_along_axis(logits, ids[0, start:, None], axis=-1).sum())
    forget_positions(model)
    return mx.stack(logps)


def gradient(model, function):
    parameters = model.trainable_parameters()

    def total(parameters):
        model.update(parameters)
        return (function() * mx.array(WEIGHTS)).sum()

    found = dict(tree_flatten(mx.grad(total)(parameters)))
    model.update(parameters)
    return found


@pytest.mark.usefixtures("compiling")
def test_every_way_equals_the_models_own_forward(seeing):
    rows, shown = rows_of(seeing)
    batch = with_pictures(seeing, collate(rows, np.arange(3)), shown)
    halves = split_model(seeing)
    expected = own_logps(seeing, rows, shown)
    expected_gradient = gradient(seeing, lambda: own_logps(seeing, rows, shown))
    assert all(name.startswith("language_model.model.layers") for name in expected_gradient)
    size = max(mx.abs(value).max().item() for value in expected_gradient.values())
    ways = [kind(halves, cost) for kind in (HeadPolicy, SharedPrefixPolicy) for cost in (None, 0)]
    for policy in (PlainPolicy(seeing), *ways, PairwisePrefixPolicy(halves)):
        assert mx.allclose(policy(batch).logps, expected, atol=1e-4)
        for name, value in gradient(seeing, lambda policy=policy: policy(batch).logps).items():
            assert mx.abs(value - expected_gradient[name]).max().item() < 1e-4 * size
    part = slice_batch(batch, 1, 3)
    assert mx.allclose(ways[-1](part).logps, expected[mx.array([1, 2, 4, 5])], atol=1e-4)
    compiled = mx.compile(lambda batch: ways[2](batch).logps)
    assert mx.allclose(compiled(batch), expected, atol=1e-4)
    blind = SharedPrefixPolicy(halves)(collate(rows, np.arange(3))).logps
    assert mx.abs(blind - expected)[mx.array([0, 1, 3, 4])].min().item() > 1e-3  # so the pictures do matter


def test_the_tower_runs_once_for_each_prompt_with_pictures(seeing, monkeypatch):
    rows, shown = rows_of(seeing)
    tower, calls = type(seeing.vision_tower), []
    real = tower.__call__

    def counted(self, *args, **kwargs):
        calls.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(tower, "__call__", counted)
    batch = with_pictures(seeing, collate(rows, np.arange(3)), shown)
    assert len(calls) == 2
    policy = SharedPrefixPolicy(split_model(seeing))
    gradient(seeing, lambda: policy(batch).logps)
    assert len(calls) == 2


def test_tokens_say_what_they_stand_for(tmp_path):
    model = _model("llava", tmp_path)
    rows, shown = rows_of(model)
    batch = collate(rows, np.arange(3))
    batch = with_pictures(model, batch._replace(mismatched=batch), shown, multiple=4)
    assert batch.pictures.positions is None and len(batch.pictures.embeddings) == 16  # 12 entries, padded
    standing = np.array(batch.prompts)
    assert (standing[standing >= PICTURE] - PICTURE).tolist() == list(range(12))
    again = np.array(batch.tokens)
    assert (again[again >= PICTURE] - PICTURE).tolist() == [*range(12), *range(12)]  # chosen, then rejected
    assert mx.array_equal(batch.mismatched.tokens, batch.tokens)
    assert picture_token(model) not in standing


def test_positions_move_as_the_model_counts_them():
    """Text, a picture of 2 × 3 parts at 1, text: what follows is at 1 + 3, so it has moved by 4 − 7 = −3."""
    positions = np.array([[0, 1, 1, 1, 1, 1, 1, 4, 5], [0, 1, 1, 1, 2, 2, 2, 4, 5], [0, 1, 2, 3, 1, 2, 3, 4, 5]])
    is_picture = np.array([False, *[True] * 6, False, False])
    moves = _moves(positions, is_picture)
    assert moves[:, 3].tolist() == [0, 0, 0, 0, 0, -3]
    assert moves[:, :3].tolist() == [[0, 0, 0], [-1, -1, 0], [-2, -2, 0], [-3, -2, -3], [-4, -3, -3], [-5, -4, -3]]


def test_a_model_that_reads_more_of_a_picture_is_refused(tmp_path):
    model = _model("llava", tmp_path)
    rows, shown = rows_of(model)
    batch = collate(rows, np.arange(3))
    check_exact(model, batch, shown)
    own = model.get_input_embeddings
    object.__setattr__(model, "get_input_embeddings", lambda *args, **kwargs: _doubled(own(*args, **kwargs)))
    with pytest.raises(UserError, match="type llava cannot be trained with pictures.* Tested types: llava, "):
        check_exact(model, batch, shown)


def _doubled(features):
    features.inputs_embeds = 2 * features.inputs_embeds
    return features
