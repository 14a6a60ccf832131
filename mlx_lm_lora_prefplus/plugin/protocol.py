"""The protocol of a trainer, and the batches, scores and losses that it works with."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import mlx.core as mx

if TYPE_CHECKING:
    import numpy as np

RowKind = Literal["paired", "unpaired", "ranked"]
"""The kind of rows that a mode uses. `paired`: one prompt with a chosen and a rejected completion. `unpaired`: one
prompt with one completion, labelled desirable or undesirable. `ranked`: one prompt with several completions, best
first.
"""

Unit = str
"""The unit over which a sum is averaged: see `Batch.units`."""


PICTURE = 1 << 30
"""Token ids from this number on stand for parts of pictures: id `PICTURE` + i is entry i of `Batch.pictures`."""


class Pictures(NamedTuple):
    """The pictures in the prompts of a batch, with one entry for each token that stands for a part of a picture.

    embeddings: (entries, hidden), from the frozen vision tower; no gradient.
    positions: (entries, 4) int32 for models that count positions on three axes, else None. A picture shifts the
        positions of all tokens after it. The first three values: the token's position on each axis, minus its index in
        the row and minus the shifts by earlier pictures. The last value: the shift that this entry adds for all later
        tokens.
    """

    embeddings: mx.array
    positions: mx.array | None = None


class Packed(NamedTuple):
    """The examples of a batch, each as one part of a row: the prompt, then its completions one after another. A
    completion follows its prompt in position and attention, and does not see the other completions. Those of
    `Batch.mismatched` come last. Several examples can share a row; they do not see each other.

    The last token of a completion predicts nothing, so it is left out.

    tokens: (rows, width) int32, padded on the right with zeros.
    positions: (rows, width) int32, the position of each token in its sequence, prompt + completion.
    branches: (rows, width) int32, 0 for prompt tokens, k + 1 for tokens of completion k, −1 for padding.
    examples: (rows, width) int32, the example of each token; 0 for padding.
    places: (positions,) int32, for each entry of `Batch.scored` the index into the flattened `tokens` of the token that
        predicts it. It is the size of `tokens` where the entry is padding. The entries of `Batch.mismatched` follow.
    """

    tokens: mx.array
    positions: mx.array
    branches: mx.array
    examples: mx.array
    places: mx.array


class Batch(NamedTuple):
    """One micro-batch of token rows, padded on the right.

    An example is a prompt with its completions. All examples of a batch have the same number of completions: a pair has
    two, chosen and rejected. Row `k * examples + i` is completion `k` of example `i`. Shorter lists are padded with
    empty completions.

    tokens: (rows, width) int32, prompt, then completion, then padding (zeros).
    prompts: (examples, longest prompt) int32, only the prompts, padded on the right.
    completions: (rows, longest completion) int32, only the completions, padded on the right.
    scored: (positions,) int32, indices into the flattened `completions` of the tokens that count. Entries equal to the
        size of `completions` are padding.
    prompt_lengths: (rows,) int32, tokens of the prompt.
    lengths: (rows,) int32, tokens of prompt and completion together.
    reference_logps: (rows,) float32, summed completion log-probs of the reference (nats), weighted by the trainer's
        `token_weights`; zeros if there is no reference.
    ids: (examples,) int32, positions of the rows in their data set.
    columns: numbers from the data, by name: (examples,) float32, or (rows,) if each completion has its own.
    loss_mask: (rows, longest completion) bool, true for the tokens of `completions` that count. These are the tokens of
        the assistant; user turns and tool output between them do not count. False at padding. None if all completion
        tokens count.
    mismatched: a separate batch of the same prompts, each with the completion of another row. None if the loss does not
        use it (see `Trainer.needs_mismatched`).
    pictures: what the tokens at and above `PICTURE` in `tokens` and `prompts` stand for; None without pictures.
    packed: the same examples in packed rows, for a compiled step that computes them so; else None.
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
    mismatched: "Batch | None" = None
    pictures: Pictures | None = None
    packed: Packed | None = None

    @property
    def all_reference_logps(self) -> mx.array:
        """Return `reference_logps`, followed by those of `mismatched`."""
        if self.mismatched is None:
            return self.reference_logps
        return mx.concatenate([self.reference_logps, self.mismatched.reference_logps])

    def with_reference_logps(self, logps: mx.array) -> "Batch":
        """Return a copy of this batch with the reference log-probs `logps`, which are in the order of
        `all_reference_logps`.
        """
        rows = self.lengths.shape[0]
        mismatched = self.mismatched and self.mismatched._replace(reference_logps=logps[rows:])
        return self._replace(reference_logps=logps[:rows], mismatched=mismatched)

    @property
    def completion_lengths(self) -> mx.array:
        """Return, for each completion, the number of tokens that count in the loss: (rows,) int32."""
        return self.lengths - self.prompt_lengths if self.loss_mask is None else self.loss_mask.sum(axis=1)

    @property
    def completion_mask(self) -> mx.array:
        """Return, for each position t of a row, whether token t + 1 is a completion token that counts: (rows, width -
        1) bool.
        """
        target = mx.arange(1, self.tokens.shape[1])[None]
        mask = (target >= self.prompt_lengths[:, None]) & (target < self.lengths[:, None])
        if self.loss_mask is None:
            return mask
        place = mx.clip(target - self.prompt_lengths[:, None], 0, self.loss_mask.shape[1] - 1)
        return mask & mx.take_along_axis(self.loss_mask, place, axis=1)

    def units(self) -> dict[Unit, int]:
        """Count each unit in this batch.

        The units are:

        examples: pairs, unpaired rows or lists.
        chosen_tokens: counted tokens of the first completion of each example.
        second_tokens: counted tokens of the second completion. For pairs and single completions: of the first.
        rejected_tokens: counted tokens of the last completion, if there are several.
        completion_tokens: counted tokens of all completions.
        desirable, undesirable: rows of each label; only for unpaired rows.
        """
        examples = self.ids.shape[0]
        import numpy as np  # not at the top: commands that only describe modes start faster

        lengths = np.asarray(self.completion_lengths).reshape(-1, examples)
        units = {"examples": examples, "chosen_tokens": int(lengths[0].sum()), "completion_tokens": int(lengths.sum())}
        if len(lengths) > 1:
            count = (lengths > 0).sum(axis=0)
            places = {"second_tokens": np.clip(count - 2, 0, 1), "rejected_tokens": np.maximum(count - 1, 1)}
            for unit, place in places.items():
                units[unit] = int(np.take_along_axis(lengths, place[None], axis=0).sum())
        if "label" in self.columns:
            units["desirable"] = int(np.asarray(self.columns["label"] > 0).sum())
            units["undesirable"] = examples - units["desirable"]
        return units


class LossOutput(NamedTuple):
    """Sums over a micro-batch, before any division.

    The loop divides each sum by the number of its unit in the *whole* optimiser step (over all micro-batches and
    ranks). The result therefore does not depend on how the step is divided into micro-batches.

    sums: unit → () float32. The loss is Σ over units of sum / number of units.
    metrics: unit → name → () float32, averaged in the same way for the log; without a gradient.
    state: the trainer's state for the next micro-batch (see `Trainer.initial_state`); empty for most trainers.
    """

    sums: dict[Unit, mx.array]
    metrics: dict[Unit, dict[str, mx.array]]
    state: dict[str, mx.array] = {}  # noqa: RUF012  (read only)


class Scorer(Protocol):
    """A trainer's interface to the model being trained.

    A call with a batch returns `Scores`. weights: (rows, longest completion) float32, the weight of each completion
    token in `Scores.weighted_logps`; None means 1. statistics: whether to compute `entropy` and `log_collision` too.
    """

    model: Any
    """The model being trained."""

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> "Scores": ...


class Scores(NamedTuple):
    """Scores of a batch. Log-probs are in nats. Only the first two fields are always computed.

    logps: (rows,) float32, summed log-probs of the completion tokens.
    mean_logits: (rows,) float32, mean logit over the vocabulary and the completion tokens; no gradient.
    weighted_logps: (rows,) float32, log-probs summed with the weights; equal to `logps` without weights.
    entropy: (rows,) float32, mean over the completion tokens of −Σ_v π(v) log π(v); no gradient.
    log_collision: (rows,) float32, mean over the completion tokens of log Σ_v π(v)²; no gradient.
    mismatched_logps: (rows,) float32, summed log-probs of the completions in `Batch.mismatched`; no gradient. None
        without them.
    """

    logps: mx.array
    mean_logits: mx.array
    weighted_logps: mx.array
    entropy: mx.array | None = None
    log_collision: mx.array | None = None
    mismatched_logps: mx.array | None = None

    @property
    def all_weighted_logps(self) -> mx.array:
        """Return `weighted_logps`, followed by `mismatched_logps`, in float32. These are the log-probs that are stored
        if the model is the reference.
        """
        both = [self.weighted_logps] if self.mismatched_logps is None else [self.weighted_logps, self.mismatched_logps]
        return mx.concatenate([logps.astype(mx.float32) for logps in both])


@runtime_checkable
class Trainer(Protocol):
    """One `--train-mode`: the members that the training loop and other commands use.

    Inherit from `mlx_lm_lora_prefplus.trainers.BaseTrainer`, which has defaults for all members except `mode`,
    `options` and `loss`.

    mode: the name on the command line.
    rows: the kind of rows that it needs.
    options: a frozen dataclass of its config keys. Write each as `key: Annotated[type, pydantic.Field(gt=0,
        description="… unit …")] = default`. Flags, `--help`, checks of bounds and the docs follow from it. A key with
        the name of a host flag (`beta`, `delta`) changes the default of that flag.
    losses: allowed value of `loss_type` → its row (`mlx_lm_lora_prefplus.losses.Loss`); may be empty.
    defaults: key of the host → a default that replaces the host's.
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

    def rows_of(self, options: Any) -> RowKind:
        """Return the kind of rows that the mode needs with these options; usually the attribute `rows`."""
        ...

    def with_losses(self, losses: Mapping[str, Any]) -> "Trainer":
        """Return a copy of this trainer with more losses in its table.

        Raises:
            ValueError: The trainer has no table, or the table already has the name.
        """
        ...

    def needs_reference(self, options: Any) -> bool:
        """Return whether `Batch.reference_logps` must be filled."""
        ...

    def needs_mismatched(self, options: Any) -> bool:
        """Return whether `loss` uses `Batch.mismatched`: log-probs of completions of other rows, without gradients."""
        ...

    def collate(self, rows: Sequence[Mapping[str, Any]], ids: "np.ndarray", multiple: int = 1) -> Batch:
        """Pad the rows of one micro-batch. The trainer does not decide which rows it contains.

        rows: items with lists of token ids; completions exclude the prompt. Paired rows have `prompt`, `chosen`,
            `rejected`. Unpaired rows have `prompt`, `completion`, and `label`, 1.0 or 0.0. Ranked rows have `prompt`,
            `completions`, best first, and `scores`. If some completion tokens do not count, there are masks:
            `chosen_mask` and `rejected_mask`, `completion_mask`, or `completion_masks`. A mask has 1 or 0 per token;
            None means that all count. Other columns have one number per row, such as `margin`.
        ids: (examples,) positions of the rows in their data set.
        multiple: pad widths to multiples of this many tokens, which limits the number of compiled graphs.
        """
        ...

    def token_weights(self, batch: Batch, options: Any) -> mx.array | None:
        """Return the weight of each completion token in `Batch.reference_logps`, (rows, longest completion) float32.

        None means 1. The reference pass uses these weights. `loss` must pass the same ones to the policy.
        """
        ...

    def reference_key(self, options: Any) -> Any:
        """Return, as JSON values, all options that `token_weights` depends on. They are part of the key under which
        reference log-probs are cached.
        """
        ...

    def separable(self, options: Any) -> bool:
        """Return whether the loss of an example is independent of the other examples in its batch. If it is, a batch
        may be divided.
        """
        ...

    def initial_state(self, options: Any) -> dict[str, mx.array]:
        """Return the trainer's state before the first micro-batch, such as a running mean. Most trainers have an empty
        state.

        It is saved with the state of a run. `loss` returns the new state in `LossOutput.state`.
        """
        ...

    def loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """Compute the loss of a micro-batch, differentiable through `policy(batch)`. state: see `initial_state`."""
        ...

    def rewards(self, scores: "Scores", batch: Batch, options: Any) -> mx.array:
        """Return the implicit reward of each completion, (rows,) nats; the command `evaluate` compares them."""
        ...

    def evaluate(
        self, policy: Scorer, batches: Iterator[Batch], options: Any, state: Mapping[str, mx.array]
    ) -> dict[str, float]:
        """Return means over all batches of the loss and its metrics, without gradients and dropout."""
        ...
