"""What a trainer is: a mode, the rows it reads, its config keys, and three things it can do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import mlx.core as mx
import numpy as np

Rows = Literal["paired", "unpaired", "ranked"]
"""The kind of rows a mode reads. `paired`: one prompt with a chosen and a rejected completion."""

Unit = Literal["pairs", "chosen_tokens"]
"""What a summed quantity is averaged over in the end: the pairs, or the tokens of the chosen completions."""


class Batch(NamedTuple):
    """One micro-batch of token rows, padded on the right.

    Paired rows stand chosen first half, rejected second half: row `i` and row `i + pairs` share a prompt.

    tokens: (rows, width) int32, prompt then completion then padding (zeros).
    prompts: (pairs, longest prompt) int32, the prompts alone, padded on the right.
    completions: (rows, longest completion) int32, the completions alone, padded on the right.
    scored: (positions,) int32, where `completions`, flattened, holds tokens and not padding. Entries equal to
        its size are padding of this array itself.
    prompt_lengths: (rows,) int32, tokens of the prompt.
    lengths: (rows,) int32, tokens of prompt and completion together.
    reference_logps: (rows,) float32, summed completion log-probs of the reference (nats); zeros where the
        mode has no reference.
    ids: (pairs,) int32, positions of the rows in the data set that was given to `iterate_batches`.
    """

    tokens: mx.array
    prompts: mx.array
    completions: mx.array
    scored: mx.array
    prompt_lengths: mx.array
    lengths: mx.array
    reference_logps: mx.array
    ids: mx.array

    @property
    def completion_lengths(self) -> mx.array:
        """(rows,) int32, tokens of each completion."""
        return self.lengths - self.prompt_lengths

    @property
    def completion_mask(self) -> mx.array:
        """(rows, width - 1) bool, true where position t predicts a completion token (token t + 1)."""
        target = mx.arange(1, self.tokens.shape[1])[None]
        return (target >= self.prompt_lengths[:, None]) & (target < self.lengths[:, None])

    def units(self) -> dict[Unit, int]:
        """How many of each unit this batch holds."""
        pairs = self.ids.shape[0]
        return {"pairs": pairs, "chosen_tokens": int(np.asarray(self.completion_lengths[:pairs]).sum())}


class LossOutput(NamedTuple):
    """Sums over a micro-batch, not yet divided by anything.

    The loop divides each by the number of its unit in the *whole* optimiser step (over micro-batches and
    ranks alike), so the result does not depend on how the step was cut up.

    sums: unit → () float32; the loss is Σ over units of sum / number of units.
    metrics: unit → name → () float32, averaged the same way for the log. No gradient is taken of them.
    """

    sums: dict[Unit, mx.array]
    metrics: dict[Unit, dict[str, mx.array]]


class Policy(Protocol):
    """The model being trained, as a trainer sees it."""

    model: Any
    """The model itself (`mlx.nn.Module`), for trainers that need more than log-probs."""

    def __call__(self, batch: Batch) -> "Scores": ...


class Scores(NamedTuple):
    """What the policy says of a batch.

    logps: (rows,) float32, summed log-probs of the completion tokens (nats).
    mean_logits: (rows,) float32, mean logit over the vocabulary and the completion tokens.
    """

    logps: mx.array
    mean_logits: mx.array


@runtime_checkable
class Trainer(Protocol):
    """One `--train-mode`. The loop drives anything that has these members.

    mode: the name on the command line.
    rows: the kind of rows it reads.
    options: a frozen dataclass of its config keys. Write each as
        `key: Annotated[type, pydantic.Field(gt=0, description="… unit …")] = default`; flags, `--help`,
        checks of bounds and the docs follow from it. A key of the host's name (`beta`, `delta`) takes over
        the host's flag with this default.
    losses: the names `loss_type` may take, each with a `Loss` row (`mlx_lm_lora_prefplus.losses.Loss`); may
        be empty.
    """

    @property
    def mode(self) -> str: ...

    @property
    def rows(self) -> Rows: ...

    @property
    def options(self) -> type: ...

    @property
    def losses(self) -> Mapping[str, Any]: ...

    def needs_reference(self, options: Any) -> bool:
        """Whether `Batch.reference_logps` must be filled."""
        ...

    def iterate_batches(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        batch_size: int,
        epoch: int,
        seed: int,
        shuffle: bool,
        multiple: int = 1,
    ) -> Iterator[Batch]:
        """Yield the batches of one epoch: every row once.

        rows: items with `prompt`, `chosen`, `rejected`: lists of token ids; completions without the prompt.
        batch_size: pairs in a batch (the last may hold fewer).
        epoch: counts from 0; with `seed` it fixes the order.
        shuffle: false keeps one fixed order (evaluation).
        multiple: pad widths to multiples of this many tokens (bounds the number of compiled graphs).

        A trainer may take a further `token_budget`: instead of `batch_size` pairs, as many as stay within so many
        tokens with their padding. It is given only where the user sets it; who does not take it need not have it.
        """
        ...

    def loss(self, policy: Policy, batch: Batch, options: Any) -> LossOutput:
        """The loss of a micro-batch, differentiable through `policy(batch)`."""
        ...

    def evaluate(self, policy: Policy, batches: Iterator[Batch], options: Any) -> dict[str, float]:
        """Means over all batches: `loss` and every metric of `loss(...)`, no gradients, dropout off."""
        ...
