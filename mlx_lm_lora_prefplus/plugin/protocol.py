"""What a trainer is: a mode, the rows it reads, its config keys, and three things it can do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import mlx.core as mx
import numpy as np

RowKind = Literal["paired", "unpaired", "ranked"]
"""The kind of rows a mode reads. `paired`: one prompt with a chosen and a rejected completion; `unpaired`: one prompt
with one completion that is labelled good or bad; `ranked`: one prompt with several completions, the best first."""

Unit = str
"""What a summed quantity is averaged over in the end: see `Batch.units`."""


class Batch(NamedTuple):
    """One micro-batch of token rows, padded on the right.

    An example is a prompt with its completions, as many in every example of the batch: a pair has two, chosen and
    rejected. Row `k * examples + i` is completion `k` of example `i`. A list with fewer completions than the longest of
    its batch is filled up with empty ones.

    tokens: (rows, width) int32, prompt then completion then padding (zeros).
    prompts: (examples, longest prompt) int32, the prompts alone, padded on the right.
    completions: (rows, longest completion) int32, the completions alone, padded on the right.
    scored: (positions,) int32, where `completions`, flattened, holds tokens that count. Entries equal to its size are
        padding of this array itself.
    prompt_lengths: (rows,) int32, tokens of the prompt.
    lengths: (rows,) int32, tokens of prompt and completion together.
    reference_logps: (rows,) float32, summed completion log-probs of the reference (nats), its tokens weighted as the
        trainer's `token_weights` say; zeros where there is no reference.
    ids: (examples,) int32, positions of the rows in their data set.
    columns: numbers that came with the data, by name: (examples,) float32; (rows,) where each completion has its own.
    loss_mask: (rows, longest completion) bool, which tokens of `completions` count: those of the assistant, and not the
        user's turns or a tool's output between them. False at padding. None where all completion tokens count.
    """

    tokens: mx.array
    prompts: mx.array
    completions: mx.array
    scored: mx.array
    prompt_lengths: mx.array
    lengths: mx.array
    reference_logps: mx.array
    ids: mx.array
    columns: dict[str, mx.array] = {}  # noqa: RUF012  (read only)
    loss_mask: mx.array | None = None

    @property
    def completion_lengths(self) -> mx.array:
        """(rows,) int32, tokens of each completion that count."""
        return self.lengths - self.prompt_lengths if self.loss_mask is None else self.loss_mask.sum(axis=1)

    @property
    def completion_mask(self) -> mx.array:
        """(rows, width - 1) bool, true where position t predicts a completion token that counts (token t + 1)."""
        target = mx.arange(1, self.tokens.shape[1])[None]
        mask = (target >= self.prompt_lengths[:, None]) & (target < self.lengths[:, None])
        if self.loss_mask is None:
            return mask
        place = mx.clip(target - self.prompt_lengths[:, None], 0, self.loss_mask.shape[1] - 1)
        return mask & mx.take_along_axis(self.loss_mask, place, axis=1)

    def units(self) -> dict[Unit, int]:
        """How many of each unit this batch holds.

        examples: pairs, unpaired rows or lists. chosen_tokens: tokens of the first completion of each that count;
        rejected_tokens: of the last, where there are several; completion_tokens: of all. Where the rows are unpaired,
        also desirable and undesirable: rows of either label.
        """
        examples = self.ids.shape[0]
        lengths = np.asarray(self.completion_lengths).reshape(-1, examples)
        units = {"examples": examples, "chosen_tokens": int(lengths[0].sum()), "completion_tokens": int(lengths.sum())}
        if len(lengths) > 1:
            last = np.maximum((lengths > 0).sum(axis=0) - 1, 1)
            units["rejected_tokens"] = int(np.take_along_axis(lengths, last[None], axis=0).sum())
        if "label" in self.columns:
            units["desirable"] = int(np.asarray(self.columns["label"] > 0).sum())
            units["undesirable"] = examples - units["desirable"]
        return units


class LossOutput(NamedTuple):
    """Sums over a micro-batch, not yet divided by anything.

    The loop divides each by the number of its unit in the *whole* optimiser step (over micro-batches and
    ranks alike), so the result does not depend on how the step was cut up.

    sums: unit → () float32; the loss is Σ over units of sum / number of units.
    metrics: unit → name → () float32, averaged the same way for the log. No gradient is taken of them.
    state: what a trainer with a state carries on to the next micro-batch (see `Trainer`); empty for all others.
    """

    sums: dict[Unit, mx.array]
    metrics: dict[Unit, dict[str, mx.array]]
    state: dict[str, mx.array] = {}  # noqa: RUF012  (read only)


class Scorer(Protocol):
    """The model being trained, as a trainer sees it.

    Called with a batch it gives `Scores`. weights: (rows, longest completion) float32, what each completion token
    counts in `Scores.weighted_logps`; None: 1. statistics: whether to fill in `entropy` and `log_collision` as well.
    """

    model: Any
    """The model itself (`mlx.nn.Module`), for trainers that need more than log-probs."""

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> "Scores": ...


class Scores(NamedTuple):
    """What the policy says of a batch. Log-probs are in nats; all but the first two have to be asked for.

    logps: (rows,) float32, summed log-probs of the completion tokens.
    mean_logits: (rows,) float32, mean logit over the vocabulary and the completion tokens; no gradient.
    weighted_logps: (rows,) float32, log-probs summed with the weights given; `logps` where none were given.
    entropy: (rows,) float32, mean over the completion tokens of −Σ_v π(v) log π(v); no gradient.
    log_collision: (rows,) float32, mean over the completion tokens of log Σ_v π(v)²; no gradient.
    """

    logps: mx.array
    mean_logits: mx.array
    weighted_logps: mx.array
    entropy: mx.array | None = None
    log_collision: mx.array | None = None


@runtime_checkable
class Trainer(Protocol):
    """One `--train-mode`: what the host and the training loop ask of it.

    Inherit from `mlx_lm_lora_prefplus.trainers.BaseTrainer`, which has a default for everything but `mode`, `options`
    and `loss`.

    mode: the name on the command line.
    rows: the kind of rows it reads.
    options: a frozen dataclass of its config keys. Write each as
        `key: Annotated[type, pydantic.Field(gt=0, description="… unit …")] = default`; flags, `--help`,
        checks of bounds and the docs follow from it. A key of the host's name (`beta`, `delta`) takes over
        the host's flag with this default.
    losses: the names `loss_type` may take, each with a `Loss` row (`mlx_lm_lora_prefplus.losses.Loss`); may
        be empty.
    defaults: key of the host → another default than the host's.
    mismatched: whether each unpaired row brings the completion of another row along as a second completion.
    """

    @property
    def mode(self) -> str: ...

    @property
    def rows(self) -> RowKind: ...

    @property
    def options(self) -> type: ...

    @property
    def losses(self) -> Mapping[str, Any]: ...

    @property
    def defaults(self) -> Mapping[str, Any]: ...

    @property
    def mismatched(self) -> bool: ...

    def rows_of(self, options: Any) -> RowKind:
        """The kind of rows that these options need; `rows` for most."""
        ...

    def with_losses(self, losses: Mapping[str, Any]) -> "Trainer":
        """The same trainer with further rows in its table of losses.

        Raises:
            ValueError: it has no table, or a name in it already.
        """
        ...

    def needs_reference(self, options: Any) -> bool:
        """Whether `Batch.reference_logps` must be filled."""
        ...

    def collate(self, rows: Sequence[Mapping[str, Any]], ids: np.ndarray, multiple: int = 1) -> Batch:
        """Pad the rows of one micro-batch. The host decides which rows stand together.

        rows: items with lists of token ids, completions without the prompt: `prompt`, `chosen`, `rejected` (paired);
            `prompt`, `completion`, and `label`, 1.0 or 0.0 (unpaired); `prompt`, `completions`, the best first, and
            `scores` (ranked). Where some completion tokens do not count, `chosen_mask` and `rejected_mask`,
            `completion_mask`, or `completion_masks` say which do: a 1 or 0 a token, None where all count. Further
            columns hold a number a row, such as `margin`.
        ids: (examples,) positions of the rows in their data set.
        multiple: pad widths to multiples of this many tokens (bounds the number of compiled graphs).
        """
        ...

    def token_weights(self, batch: Batch, options: Any) -> mx.array | None:
        """What each completion token counts in `Batch.reference_logps`, (rows, longest completion) float32; None: 1.

        The reference pass asks for it; `loss` gives the policy the same.
        """
        ...

    def reference_key(self, options: Any) -> Any:
        """All that `token_weights` depends on, as JSON takes it: stored reference log-probs are kept by it."""
        ...

    def separable(self, options: Any) -> bool:
        """Whether the loss of an example does not depend on the others in its batch. Only then is a batch cut."""
        ...

    def initial_state(self, options: Any) -> dict[str, mx.array]:
        """What changes from micro-batch to micro-batch beside the weights, such as a running mean; often empty.

        It is part of the saved state of a run. `loss` returns the new one in `LossOutput.state`.
        """
        ...

    def loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """The loss of a micro-batch, differentiable through `policy(batch)`. state: as `initial_state` has it."""
        ...

    def rewards(self, scores: "Scores", batch: Batch, options: Any) -> mx.array:
        """(rows,) implicit reward of each completion, nats; `evaluate` compares them."""
        ...

    def evaluate(
        self, policy: Scorer, batches: Iterator[Batch], options: Any, state: Mapping[str, mx.array]
    ) -> dict[str, float]:
        """Means over all batches: `loss` and every metric of `loss(...)`, no gradients, dropout off."""
        ...
