"""Optimisers whose moments use 8 bits: a quarter of the memory of 32 bits.

This is block-wise quantisation (Dettmers et al. 2022, arXiv 2110.02861). Each block of 256 values stores its largest
absolute value in 32 bits, and each value as an 8-bit fraction of it. Tensors of fewer than 4,096 values keep 32-bit
moments.

There are two differences from the paper. First, the fraction is stored as an 8-bit float with three bits of mantissa.
Neighbouring levels of such a float differ by 6 to 12 % at any size. In the paper's table of levels, they differ by more
for values below a tenth of the largest. Second, rounding is stochastic, which preserves the mean of each moment.
Rounding to the nearest level would instead ignore every gradient that changes `v` (the mean of squared gradients) by
less than half the distance between two levels. With beta2 = 0.999, nearly every gradient changes `v` by less than that.

The random numbers for rounding depend only on the number of the update. They are therefore the same in all processes of
a run, and in a resumed run the same as in an uninterrupted one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim

BLOCK = 256
"""How many values share a scale: 4 bytes of scale for 256 bytes of codes."""

SMALLEST = 4096
"""Tensors with fewer values keep their moments in 32 bits."""

AT_ONCE = 2**20
"""How many values are converted to 32 bits at a time. Larger tensors are updated in several parts, to limit memory."""

DROPPED = 20
"""How many of the lower bits of a float32 are dropped in 8 bits. Three bits of the mantissa remain."""

ONE = 127 << 3
"""The number 1.0 as float32, without its `DROPPED` lower bits."""

STATES: Mapping[type[optim.Optimizer], Mapping[str, bool]] = {
    optim.SGD: {"v": True},
    optim.RMSprop: {"v": False},
    optim.Adam: {"m": True, "v": False},
    optim.AdamW: {"m": True, "v": False},
    optim.Adamax: {"m": True, "v": False},
    optim.Lion: {"m": True},
}
"""Optimiser → (name of a state → whether its values can be negative). All of these optimisers update each value of a
tensor independently.
"""

REFUSED: Mapping[type[optim.Optimizer], str] = {
    optim.Adagrad: "sums squared gradients without decay, so it would sum the rounding errors too",
    optim.AdaDelta: "divides two averages, which amplifies the rounding errors",
    optim.Adafactor: "keeps only one mean per row and column of a matrix, which needs less memory already",
    optim.Muon: "computes with whole matrices, so all their values would be in 32 bits at once",
}
"""Optimiser → why its states cannot be kept in 8 bits, as the end of a sentence that begins with "It"."""


class Quantized(NamedTuple):
    """A tensor in 8 bits. codes: (blocks, 256) uint8. scale: (blocks, 1) float32, the largest absolute value of each
    block.
    """

    codes: mx.array
    scale: mx.array


def quantized(values: mx.array, signed: bool, key: mx.array) -> Quantized:
    """Round values to 8 bits, up or down at random. The expected result is the value itself.

    If no value can be negative (as in `v`), a nonzero value never becomes 0. If `v` became 0 while the first moment is
    not 0, the update would be as large as 1 / epsilon. If values can be negative, those below 1.7e-5 of the block's
    largest absolute value may become 0.

    Arguments:
        values: (blocks, 256) float32.
        signed: whether values can be negative.
        key: the random key, see `mx.random`.
    """
    sizes = mx.abs(values)
    scale = sizes.max(axis=1, keepdims=True)
    shares = sizes / mx.where(scale > 0, scale, 1)
    random = (mx.random.uniform(shape=values.shape, key=key) * 2**DROPPED).astype(mx.int32)
    largest = 127 if signed else 255
    levels = (shares.view(mx.int32) + random >> DROPPED) - (ONE - largest)
    if signed:
        return Quantized((mx.clip(levels, 0, 127) + 128 * (values < 0)).astype(mx.uint8), scale)
    return Quantized(mx.where(shares > 0, mx.clip(levels, 1, 255), 0).astype(mx.uint8), scale)


def dequantized(state: Quantized, signed: bool) -> mx.array:
    """Return the values as (blocks, 256) float32."""
    codes = state.codes.astype(mx.uint32)
    levels, largest = (codes & 127, 127) if signed else (codes, 255)
    bits = levels + (ONE - largest) << DROPPED
    shares = ((bits | (codes & 128) << 24) if signed else bits).view(mx.float32)
    return shares * (levels > 0) * state.scale


def in_eight_bits(kind: type[optim.Optimizer]) -> type[optim.Optimizer]:
    """Return a subclass of an optimiser in `STATES` that keeps its moments in 8 bits.

    The update is computed in float32 and rounded to the type of the parameter. The subclass does not work inside
    `mx.compile`.
    """
    return type(f"{kind.__name__}In8Bits", (_EightBit, kind), {"signs": STATES[kind]})


def saved_bytes(kind: type[optim.Optimizer], parameters: Mapping[str, mx.array]) -> int:
    """Return how many bytes the 8-bit moments of these parameters save; 0 if the optimiser is not in `STATES`."""
    large = [value for value in parameters.values() if value.size >= SMALLEST]
    each = sum(value.nbytes - value.size - 4 * -(-value.size // BLOCK) for value in large)
    return len(STATES.get(kind, ())) * each


class _EightBit(optim.Optimizer):
    """The mixin that `in_eight_bits` adds to an optimiser's class. It stores a state as {"codes": …, "scale": …}
    instead of an array.
    """

    signs: Mapping[str, bool]

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        super().init_single(parameter, state)
        if parameter.size >= SMALLEST:
            blocks = -(-parameter.size // BLOCK)
            for name in self.signs:
                state[name] = {"codes": mx.zeros((blocks, BLOCK), mx.uint8), "scale": mx.zeros((blocks, 1))}

    def apply_gradients(self, gradients: dict, parameters: dict) -> Any:
        self._draws = 0
        return super().apply_gradients(gradients, parameters)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]) -> mx.array:
        if parameter.size < SMALLEST:
            return super().apply_single(gradient, parameter, state)
        gradients, values = _in_blocks(gradient), _in_blocks(parameter)
        updated: list[mx.array] = []
        codes: dict[str, list[Quantized]] = {name: [] for name in self.signs}
        for start in range(0, len(values), AT_ONCE // BLOCK):
            part = slice(start, start + AT_ONCE // BLOCK)
            stored = {
                name: Quantized(**{key: array[part] for key, array in state[name].items()}) for name in self.signs
            }
            whole = {name: dequantized(stored[name], signed) for name, signed in self.signs.items()}
            new = super().apply_single(gradients[part].astype(mx.float32), values[part].astype(mx.float32), whole)
            updated.append(new.astype(parameter.dtype))
            for name, signed in self.signs.items():
                codes[name].append(quantized(whole[name], signed, self._next_key()))
            if len(values) > AT_ONCE // BLOCK:  # compute this part now, so that its 32-bit values are freed
                mx.eval(updated, codes)
        for name, parts in codes.items():
            state[name] = Quantized(*(mx.concatenate(list(arrays)) for arrays in zip(*parts, strict=True)))._asdict()
        return mx.concatenate(updated).reshape(-1)[: parameter.size].reshape(parameter.shape)

    def _next_key(self) -> mx.array:
        """Return the random key for the next draw in this update. It is the same in every process."""
        self._draws += 1
        return mx.stack([self.step.astype(mx.uint32), mx.array(self._draws, mx.uint32)])


def _in_blocks(array: mx.array) -> mx.array:
    """Return the values as (blocks, 256), with the last block padded with zeros."""
    flat = array.reshape(-1)
    missing = -flat.size % BLOCK
    return (mx.pad(flat, (0, missing)) if missing else flat).reshape(-1, BLOCK)
