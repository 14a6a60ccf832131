"""Optimisers that keep their moments in 8 bits: a quarter of the memory of 32 bits.

Block-wise quantisation (Dettmers et al. 2022, arXiv 2110.02861): each block of 256 values keeps its largest absolute
value in 32 bits and each value as an 8-bit share of it; tensors of fewer than 4,096 values stay as MLX keeps them.
Two departures from the paper. A share is a float of 8 bits (three of them mantissa, so that levels are 6 to 12 % apart
at any size) in place of the paper's table, whose levels below the largest tenth are farther apart. And rounding is
stochastic, which keeps the mean of each moment: rounded to the nearest, `v` would ignore any gradient that changes it
by less than half the distance of two levels, and with beta2 = 0.999 nearly all do.

The random numbers follow from the number of the update alone. All processes of a run draw the same ones, and a resumed
run draws those that an uninterrupted run would.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim

BLOCK = 256
"""Values that share a scale; 4 bytes of scale for 256 bytes of codes."""

SMALLEST = 4096
"""Values of the smallest tensor whose moments are kept in 8 bits."""

AT_ONCE = 2**20
"""Values that are held in 32 bits at a time; a larger tensor is updated in parts."""

DROPPED = 20
"""Lower bits of a float32 that its 8-bit form does not have: it keeps three bits of the mantissa."""

ONE = 127 << 3
"""The upper bits of the float32 1.0."""

STATES: Mapping[type[optim.Optimizer], Mapping[str, bool]] = {
    optim.SGD: {"v": True},
    optim.RMSprop: {"v": False},
    optim.Adam: {"m": True, "v": False},
    optim.AdamW: {"m": True, "v": False},
    optim.Adamax: {"m": True, "v": False},
    optim.Lion: {"m": True},
}
"""Optimiser → its states, and whether each has a sign. All of them compute each value of a tensor independently."""

REFUSED: Mapping[type[optim.Optimizer], str] = {
    optim.Adagrad: "adds up squared gradients without forgetting any, and would add up the errors of rounding too",
    optim.AdaDelta: "takes the quotient of two averages, which multiplies the errors of rounding",
    optim.Adafactor: "keeps only a mean for each row and column of a matrix, which is less already",
    optim.Muon: "computes with whole matrices, of which all values would have to be in 32 bits at once",
}
"""Optimiser → why its states are not kept in 8 bits."""


class Quantized(NamedTuple):
    """codes: (blocks, 256) uint8. scale: (blocks, 1) float32, the largest absolute value of each block."""

    codes: mx.array
    scale: mx.array


def quantized(values: mx.array, signed: bool, key: mx.array) -> Quantized:
    """Round values to 8 bits, up or down at random, such that the mean over draws is the value itself.

    A value without a sign that is not 0 does not become 0 either: a `v` of 0 under a moment that is not 0 would make an
    update as large as 1 / epsilon. One with a sign does, below 1.7e-5 of its block's largest.

    Arguments:
        values: (blocks, 256) float32.
        signed: False if no value is negative.
        key: of the random numbers, see `mx.random`.
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
    """Return (blocks, 256) float32."""
    codes = state.codes.astype(mx.uint32)
    levels, largest = (codes & 127, 127) if signed else (codes, 255)
    bits = levels + (ONE - largest) << DROPPED
    shares = ((bits | (codes & 128) << 24) if signed else bits).view(mx.float32)
    return shares * (levels > 0) * state.scale


def in_eight_bits(kind: type[optim.Optimizer]) -> type[optim.Optimizer]:
    """Return a subclass of an optimiser in `STATES` that keeps its moments in 8 bits.

    Its update is computed in float32 and rounded to the type of the parameter. It is not for use inside `mx.compile`.
    """
    return type(f"{kind.__name__}In8Bits", (_EightBit, kind), {"signs": STATES[kind]})


def saved_bytes(kind: type[optim.Optimizer], parameters: Mapping[str, mx.array]) -> int:
    """Return how many bytes less the moments of these parameters take in 8 bits; 0 if the optimiser is refused."""
    large = [value for value in parameters.values() if value.size >= SMALLEST]
    each = sum(value.nbytes - value.size - 4 * -(-value.size // BLOCK) for value in large)
    return len(STATES.get(kind, ())) * each


class _EightBit(optim.Optimizer):
    """Stands before the optimiser's own class. A state is {"codes", "scale"} in place of an array."""

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
            whole = {
                name: dequantized(Quantized(state[name]["codes"][part], state[name]["scale"][part]), signed)
                for name, signed in self.signs.items()
            }
            new = super().apply_single(gradients[part].astype(mx.float32), values[part].astype(mx.float32), whole)
            updated.append(new.astype(parameter.dtype))
            for name, signed in self.signs.items():
                codes[name].append(quantized(whole[name], signed, self._next_key()))
            if len(values) > AT_ONCE // BLOCK:  # free what this part held in 32 bits
                mx.eval(updated, codes)
        for name, parts in codes.items():
            state[name] = {
                "codes": mx.concatenate([part.codes for part in parts]),
                "scale": mx.concatenate([part.scale for part in parts]),
            }
        return mx.concatenate(updated).reshape(-1)[: parameter.size].reshape(parameter.shape)

    def _next_key(self) -> mx.array:
        """A key for each draw of an update, the same in each process."""
        self._draws += 1
        return mx.stack([self.step.astype(mx.uint32), mx.array(self._draws, mx.uint32)])


def _in_blocks(array: mx.array) -> mx.array:
    """Return (blocks, 256), the last one filled up with zeros."""
    flat = array.reshape(-1)
    missing = -flat.size % BLOCK
    return (mx.pad(flat, (0, missing)) if missing else flat).reshape(-1, BLOCK)
