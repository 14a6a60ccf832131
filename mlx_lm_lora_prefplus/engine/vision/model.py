"""Call a vision-language model of mlx-vlm like a language model of mlx-lm: tokens → logits.

Some token ids stand for a part of a picture (see `plugin.protocol.PICTURE`). The embeddings of these parts are computed
beforehand (see `encode`). The id alone identifies the embedding, so rows with pictures can be divided, grouped and
continued from a cache like rows of text.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache

from ...plugin.protocol import PICTURE, Pictures

_shown: list[Pictures | None] = [None]
"""A stack with the pictures of nested model calls, innermost last."""


@contextmanager
def shown(pictures: Pictures | None) -> Iterator[None]:
    """Make these pictures available to a `VisionModel` while the context is open."""
    _shown.append(pictures)
    try:
        yield
    finally:
        _shown.pop()


class VisionModel(nn.Module):
    """The attributes that `as_language_model` adds to the class of a model."""

    processor: Any
    """Turns pictures into the inputs of the vision tower, and defines the tokens that represent pictures."""

    whole: Callable[..., Any]
    """mlx-vlm's original call of the model, with tokens and the inputs of the vision tower."""

    language_model: Any
    get_input_embeddings: Any

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        """Return the (rows, width, vocabulary) logits of (rows, width) tokens, with the pictures given to `shown`."""
        pictures, inputs = _shown[-1], {}
        if pictures is not None:
            inputs["inputs_embeds"] = self._embedded(tokens, pictures)
        if counts_on_axes(self):
            inputs["position_ids"] = _positions(tokens, cache, pictures)
        return self.language_model(mx.where(tokens < PICTURE, tokens, 0), cache=cache, **inputs).logits

    @property
    def layers(self) -> list[nn.Module]:
        """Return the layers of the language model, which get adapters."""
        return self.language_model.layers

    def make_cache(self) -> list[Any]:
        """Return the language model's caches."""
        own = getattr(self.language_model, "make_cache", None)
        return own() if own else [KVCache() for _ in self.layers]

    def _embedded(self, tokens: mx.array, pictures: Pictures) -> mx.array:
        is_picture = (tokens >= PICTURE)[..., None]
        text = self.language_model.model.embed_tokens(mx.where(tokens < PICTURE, tokens, 0))
        return mx.where(is_picture, pictures.embeddings[_entries(tokens)].astype(text.dtype), text)


def as_language_model(model: nn.Module, processor: Any) -> VisionModel:
    """Convert a model of mlx-vlm in place. processor: mlx-vlm's processor of the same model."""
    own = type(model)
    kind = type(own.__name__, (VisionModel, own), {"__module__": own.__module__, "whole": staticmethod(own.__call__)})
    model.__class__ = kind
    object.__setattr__(model, "processor", processor)
    return model  # pyright: ignore[reportReturnType]


def counts_on_axes(model: VisionModel) -> bool:
    """Return whether positions have three axes: time, height and width (Wang et al. 2024, arXiv 2409.12191)."""
    return hasattr(model.language_model, "get_rope_index")


def _positions(tokens: mx.array, cache: list[Any] | None, pictures: Pictures | None) -> mx.array:
    """Return the (3, rows, width) positions of tokens: their index in the row, shifted by the pictures up to them."""
    rows, width = tokens.shape
    keys = next((one for one in cache or [] if hasattr(one, "offset")), None)
    start = mx.array(getattr(keys, "offset", 0)) + getattr(keys, "moved", 0)
    places = start.reshape(-1, 1) + mx.arange(width)[None]
    if pictures is None or pictures.positions is None:
        return mx.broadcast_to(places[None], (3, rows, width))
    own = mx.where((tokens >= PICTURE)[..., None], pictures.positions[_entries(tokens)], 0)
    moves = mx.cumsum(own[..., 3], axis=1)
    if keys is not None:
        keys.moved = mx.broadcast_to(mx.array(getattr(keys, "moved", 0)), (rows,)) + moves[:, -1]
    before = moves - own[..., 3]
    return (places + before)[None] + own[..., :3].transpose(2, 0, 1)


def _entries(tokens: mx.array) -> mx.array:
    """Return, for each token, its index in the entries of `Pictures`; 0 for text tokens."""
    return mx.maximum(tokens - PICTURE, 0)
