"""Compute the embeddings of a batch's pictures. The vision tower is not trained, and runs once for each prompt."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...data.batches.plan import widths
from ...errors import UserError
from ...plugin.protocol import PICTURE, Batch, Pictures
from ..arrays import as_numpy
from .model import VisionModel, counts_on_axes, shown

KNOWN = "llava, qwen2_vl and qwen2_5_vl"
"""Model types that are tested with this package. Other types are checked when they are used."""

ALLOWED = 1e-2
"""A relative L2 difference of logits up to this counts as rounding."""


def with_pictures(model: VisionModel, batch: Batch, images: Sequence[Sequence[Any]], multiple: int = 1) -> Batch:
    """Return the batch with the embeddings of its pictures.

    images: for each example, its Pillow images in the order of the prompt.
    multiple: the number of entries is padded to a multiple of it, like `Batch.scored`, which limits the number of
        compiled graphs.

    Raises:
        UserError: The model does not use pictures only as embeddings of tokens.
    """
    lengths = np.array(batch.prompt_lengths)
    prompts = [np.array(batch.prompts[i, : lengths[i]]) for i in range(len(images))]
    seen = [_seen(model, prompt, own) for prompt, own in zip(prompts, images, strict=True)]
    counts = [int((prompt == picture_token(model)).sum()) for prompt in prompts]
    spare = int(widths(np.array(max(sum(counts), 1)), multiple * multiple)) - sum(counts)
    embeddings, *positions = (mx.concatenate(list(parts)) for parts in zip(*seen, strict=True))
    padded = Pictures(*(mx.pad(entries, [(0, spare), (0, 0)]) for entries in (embeddings, *positions)))
    mx.eval(padded)
    firsts = np.cumsum([0, *counts[:-1]])

    def standing(tokens: mx.array) -> mx.array:
        is_picture = np.array(tokens) == picture_token(model)
        of_rows = np.tile(firsts, len(is_picture) // len(firsts))
        entries = np.cumsum(is_picture, axis=1) - 1 + of_rows[:, None]
        return mx.array(np.where(is_picture, PICTURE + entries, np.array(tokens)).astype(np.int32))

    other = batch.mismatched
    return batch._replace(
        tokens=standing(batch.tokens),
        prompts=standing(batch.prompts),
        mismatched=other and other._replace(tokens=standing(other.tokens), prompts=standing(other.prompts)),
        pictures=padded,
    )


def picture_token(model: VisionModel) -> int:
    """Return the token that the processor writes for each part of a picture."""
    config: Any = model.config
    found = getattr(config, "image_token_index", None)
    return int(config.image_token_id if found is None else found)


def processed(processor: Any, images: Sequence[Any]) -> dict[str, Any]:
    """Return what mlx-vlm's processor makes from a text of one placeholder per picture: tokens and inputs of the vision
    tower.
    """
    return dict(processor(text=[processor.image_token * len(images)], images=list(images)))


def _seen(model: VisionModel, prompt: np.ndarray, images: Sequence[Any]) -> list[mx.array]:
    """Return the entries of `Pictures` for one prompt: embeddings, and positions if the model has them."""
    ids, is_picture = mx.array(prompt)[None], prompt == picture_token(model)
    embeddings, positions = model.language_model.model.embed_tokens(ids), np.zeros((3, len(prompt)), np.int32)
    if images:
        try:
            features = model.get_input_embeddings(ids, **_inputs(model, images))
        except Exception as error:  # the model's own code may raise anything
            raise UserError(f"The model cannot read the pictures of a prompt: {error}") from error
        embeddings = features.inputs_embeds
        positions = np.array(features.position_ids)[:, 0] if counts_on_axes(model) else positions
    places = mx.array(np.flatnonzero(is_picture).astype(np.int32))
    entries = [mx.stop_gradient(embeddings[0][places])]
    return [*entries, mx.array(_moves(positions, is_picture))] if counts_on_axes(model) else entries


def _inputs(model: VisionModel, images: Sequence[Any]) -> dict[str, Any]:
    """Return the inputs of the vision tower for pictures, under mlx-vlm's names."""
    inputs = processed(model.processor, images)
    return {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}


def _moves(positions: np.ndarray, is_picture: np.ndarray) -> np.ndarray:
    """Return the positions, (entries, 4): see `Pictures.positions`.

    positions: (3, tokens) of one prompt. For text they are the same on all axes. is_picture: (tokens,) bool.
    """
    moved = positions - np.arange(positions.shape[1])
    ends = np.flatnonzero(is_picture & ~np.append(is_picture[1:], False))
    after = np.append(moved[0], positions.max() + 1 - positions.shape[1])  # last: the shift after the row
    before = np.concatenate([[0], after[ends + 1]])  # for each run of picture tokens: the shift by the runs before it
    run = np.cumsum(is_picture & ~np.concatenate([[False], is_picture[:-1]]))[is_picture] - 1
    entries = np.zeros((int(is_picture.sum()), 4), np.int32)
    entries[:, :3] = (moved[:, is_picture] - before[run]).T
    entries[np.cumsum(is_picture)[ends] - 1, 3] = np.diff(before)
    return entries


def check_exact(model: VisionModel, batch: Batch, images: Sequence[Sequence[Any]]) -> None:
    """Compare the logits of the first prompt with those of mlx-vlm's own forward pass.

    Raises:
        UserError: The logits differ, so the model does not use pictures only as embeddings of tokens.
    """
    example = next(i for i, own in enumerate(images) if own)
    length = int(batch.prompt_lengths[example])
    seen = with_pictures(model, batch, images)
    with shown(seen.pictures):
        ours = model(seen.prompts[example : example + 1, :length])
    inputs = _inputs(model, images[example])
    theirs = model.whole(model, batch.prompts[example : example + 1, :length], mask=None, **inputs).logits
    forget_positions(model)
    ours, theirs = (as_numpy(logits.astype(mx.float32)) for logits in (ours, theirs))
    if not np.linalg.norm(ours - theirs) <= ALLOWED * np.linalg.norm(theirs):
        kind = getattr(model.config, "model_type", "?")
        raise UserError(
            f"model: models of type {kind} cannot be trained with pictures, because "
            f"their language model uses more of a picture than the embeddings of tokens. Tested types: {KNOWN}."
        )


def forget_positions(model: VisionModel) -> None:
    """Reset the positions that mlx-vlm stores in a model's call. It would otherwise use them in the next call too."""
    for name in ("_position_ids", "_rope_deltas"):
        if hasattr(model.language_model, name):
            setattr(model.language_model, name, None)
