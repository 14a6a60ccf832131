"""The model and the rows of a run, and the order in which it uses them."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from copy import copy
from functools import cached_property
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm_lora.trainer.sft_trainer import SFTTrainingArgs

from ...data.batches.collate import pictures_of, planned_batches
from ...data.batches.lengths import Lengths, Mismatched, lengths_of
from ...data.batches.packing import in_one_row
from ...data.batches.plan import COMPILED_MULTIPLE, Plan, plan_epoch
from ...data.sources.pictures import open_picture
from ...data.stream import Stream
from ...data.tokens.rows import TokenRows
from ...engine.distributed import SharedPolicy
from ...engine.logprobs.packed import PackedPolicy
from ...engine.logprobs.shared_prefix import call_tokens
from ...engine.memory.activations import MemoryChoice, choose_memory
from ...engine.memory.advice import explained, no_gradient
from ...engine.memory.recompute import Keep
from ...engine.model.digest import weights_digest
from ...engine.model.routers import routers_of
from ...engine.probe.known_choice import KnownChoice
from ...engine.probe.select import SelectedMethod, choose_policy
from ...engine.ranks.ranks import Ranks
from ...engine.train.gradient import CUT_POSITIONS, in_parts, is_separable, padded_tokens, part_tokens
from ...engine.vision.encode import check_exact, with_pictures
from ...engine.vision.model import VisionModel
from ...errors import UserError
from ...plugin import Batch, Scorer
from ...settings import RunSettings
from ..config.resolve import Resolved
from ..models import check_vocabulary
from .rows import check_columns

DEFAULT_ITERS = SFTTrainingArgs().iters
"""Number of micro-batches if neither `iters` nor `epochs` is set; the host's default."""

LONGEST = 2048
"""Largest number of tokens in the rows on which the probe compares the engine's methods. With this limit, the probe
takes a few seconds.
"""


class Session:
    """The model, the rows, and the order in which a run uses them.

    stream: the source of training rows if they are streamed. `rows` then contains the first window of them, which shows
        the lengths to expect, and `window` gives a session for each window.
    number: the number of the window.
    packs: whether examples are computed in packed rows (see `data.batches.packing`). plans_packed: whether batches
        have rows of similar total length for this; a resumed run continues with the plan of the saved one.
    sees: whether a first batch with pictures has already been checked (see `check_exact`).
    """

    def __init__(
        self,
        resolved: Resolved,
        model: nn.Module,
        tokenizer: Any,
        rows: dict[str, TokenRows],
        ranks: Ranks | None = None,
        stream: Stream | None = None,
    ):
        self.resolved, self.model, self.tokenizer, self.rows = resolved, model, tokenizer, rows
        self.stream, self.number = stream, 0
        self.sees = False
        self._planned: tuple[tuple[str, int, bool], Plan] | None = None  # the latest plan, which is asked for often
        self.ranks = ranks or Ranks()
        settings = resolved.settings
        check_vocabulary(model, tokenizer, rows.values())
        check_columns(resolved, rows)
        self.kind = resolved.kind
        self._may_pack = call_tokens() is None and not self._has_pictures
        memory = self._choose_memory()
        packed = self._choose_memory(packed=True) if self._may_pack else memory
        self._may_pack &= packed.keep is memory.keep  # to need less memory matters more
        if getattr(resolved.options, "router_aux_loss_coef", 0.0):
            routers_of(model)  # reject a model with unsupported routers before anything is computed
        self.engine = self._method(model, memory.keep)
        if settings.train and self.engine.no_gradient:
            raise UserError(no_gradient(self.engine.no_gradient))
        self.policy = self._shared(self.engine.policy)
        self.compiled = mx.default_device().type == mx.gpu and self.engine.compilable and self.ranks.size == 1
        self.multiple = COMPILED_MULTIPLE if self.compiled else 1
        self.packs = self.plans_packed = isinstance(self.engine.policy, PackedPolicy)
        self.fitting = (packed if self.packs else memory).fitting
        self.limits = {"valid": settings.val_batches, "test": settings.test_batches}
        self.iters = self._iters(settings) if "train" in rows else 0

    def window(self, number: int) -> "Session | None":
        """Return the session of one window of the stream; None if none of its rows can be used."""
        assert self.stream is not None
        read = self.stream.window(number)
        if read is None or (self.mismatched and len(read[0]) < 2):  # KTO takes the completion of another row
            return None
        other = copy(self)
        other.rows, other.number = {"train": read[0]}, number
        check_vocabulary(self.model, self.tokenizer, other.rows.values())
        check_columns(self.resolved, other.rows)
        return other

    @cached_property
    def base_digest(self) -> str:
        """Return a digest of the model's weights without its adapters, computed at the first use."""
        return weights_digest(self.model)

    def _long_examples(self) -> Batch | None:
        """Return two rows of the first split: the longest with at most `LONGEST` tokens, and one whose prompt is about
        half as long. None if every row is longer.
        """
        split = next(iter(self.rows))
        lengths = self.lengths(split)
        longest = lengths.prompt + (lengths.total if self._may_pack else lengths.completion)
        fitting = np.flatnonzero(longest <= LONGEST)
        if not len(fitting):
            return None
        long = fitting[longest[fitting].argmax()]
        half = fitting[np.abs(lengths.prompt[fitting] - lengths.prompt[long] // 2).argmin()]
        return next(self.collated(split, [np.unique([long, half])], multiple=1))

    def _choose_memory(self, packed: bool = False) -> MemoryChoice:
        """Choose what layers keep, and how many tokens are computed at once. See `choose_memory`."""
        if "train" not in self.rows:
            return MemoryChoice(Keep.ALL)
        settings, lengths = self.resolved.settings, self.lengths("train")
        lengths = in_one_row(lengths) if packed else lengths
        longest = int((lengths.prompt + lengths.completion).max())
        part = int((lengths.prompt + lengths.total).max())
        divisible = is_separable(self.resolved.trainer, self.resolved.options)
        if mx.default_device().type == mx.cpu and divisible:
            batch = part = max(CUT_POSITIONS, part)
        else:
            part = padded_tokens(lengths, COMPILED_MULTIPLE)
            batch = max(settings.token_budget or settings.batch_size * part, part)
        return choose_memory(settings, self.model, batch, part if divisible else batch, longest)

    @property
    def _has_pictures(self) -> bool:
        return any("pictures" in rows.column_names for rows in self.rows.values())

    def continue_plan(self, packed: bool) -> None:
        """Plan batches as the saved run did. packed: its `plans_packed`."""
        self.plans_packed = packed
        self.iters = self._iters(self.resolved.settings) if "train" in self.rows else 0

    def _iters(self, settings: RunSettings) -> int:
        if settings.iters or not settings.epochs:
            return settings.iters or DEFAULT_ITERS
        if not settings.token_budget:
            return settings.epochs * math.ceil(len(self.rows["train"]) / settings.batch_size)
        return sum(len(self.plan("train", epoch)) for epoch in range(settings.epochs))

    def plan(self, split: str, epoch: int = 0) -> Plan:
        """Return how the rows of a split are grouped into the batches of an epoch."""
        asked = (split, epoch + self.number, self.plans_packed)
        if self._planned is None or self._planned[0] != asked:
            settings, lengths = self.resolved.settings, self.lengths(split)
            plan = plan_epoch(
                in_one_row(lengths) if self.plans_packed else lengths,
                batch_size=settings.batch_size,
                token_budget=settings.token_budget,
                epoch=epoch + self.number,
                seed=settings.seed,
                shuffle=split == "train" and not (self.stream and self.stream.in_order),
                multiple=self.multiple,
            )
            self._planned = asked, plan
        return self._planned[1]

    def lengths(self, split: str) -> Lengths:
        """Return the lengths of a split's rows, with the completions of other rows if batches contain them."""
        lengths = lengths_of(self.rows[split])
        return Mismatched(lengths).joined() if self.mismatched else lengths

    @property
    def mismatched(self) -> bool:
        """Return whether each batch also contains its prompts with completions of other rows (as KTO needs)."""
        return self.resolved.trainer.needs_mismatched(self.resolved.options)

    def completions(self, split: str) -> int:
        """Return the largest number of log-probs per row of a split: completions, including those of other rows."""
        return int(self.lengths(split).count.max())

    def token_weights(self, batch: Batch) -> mx.array | None:
        """Return the function that weights completion tokens in the reference's sums; None: all weights are 1."""
        return self.resolved.trainer.token_weights(batch, self.resolved.options)

    def collated(self, split: str, plan: Iterable[np.ndarray], multiple: int | None = None) -> Iterator[Batch]:
        """Return the batches of a plan.

        multiple: batch widths are padded to a multiple of this number (default: as in the run's steps).
        """
        trainer, multiple = self.resolved.trainer, self.multiple if multiple is None else multiple
        rows = self.rows[split]
        batches = planned_batches(rows, plan, multiple, mismatched=self.mismatched, collate=trainer.collate)
        if "pictures" not in rows.column_names:
            return batches
        return (self._with_pictures(batch, rows, multiple) for batch in batches)

    def _with_pictures(self, batch: Batch, rows: TokenRows, multiple: int) -> Batch:
        """Add the output of the vision tower to a batch. The tower is not trained, so policy and reference share it."""
        assert isinstance(self.model, VisionModel)
        images = [[open_picture(one) for one in of_row] for of_row in pictures_of(rows, np.array(batch.ids))]
        if not self.sees and any(images):
            check_exact(self.model, batch, images)
            self.sees = True
        return with_pictures(self.model, batch, images, multiple)

    def batches(self, split: str, epoch: int = 0) -> Iterator[Batch]:
        """Return the batches of a training epoch. For other splits, return the batches that the settings evaluate."""
        return self.collated(split, islice(self.plan(split, epoch), self._limit(split)))

    def _limit(self, split: str) -> int | None:
        """Return how many batches of a split to evaluate; None for all."""
        limit = self.limits.get(split, -1)
        return None if limit < 0 else limit

    def visited_rows(self, split: str, batches: int | None = None) -> np.ndarray:
        """Return the positions of the rows that this run uses. batches: only those of the first `batches` batches."""
        return self.plan(split).rows(self._visits(split, batches))

    def uncached(
        self, split: str, is_cached: Callable[[np.ndarray], np.ndarray], batches: int | None = None
    ) -> Iterator[Batch]:
        """Return the batches that this run uses and that have at least one row which is not cached.

        Training batches keep all the rows of their training step, because only equal padding gives bitwise equal
        results.
        """
        visited = islice(self.plan(split), self._visits(split, batches))
        remaining = self.collated(split, (ids for ids in visited if not is_cached(ids).all()))
        return (one for batch in remaining for one in self.in_parts(batch)) if split == "train" else remaining

    def in_parts(self, batch: Batch) -> Iterator[Batch]:
        """Return the parts of a training batch that a step of this process computes at a time."""
        if self.cut_at is None or self.ranks.size > 1:
            return iter([batch])
        return in_parts(batch, self.cut_at, self.multiple, self.packs)

    def _visits(self, split: str, batches: int | None) -> int | None:
        if split != "train":
            return self._limit(split)
        return self.iters if batches is None else min(batches, self.iters)

    @property
    def cut_at(self) -> int | None:
        """Return the number of tokens in each part of a batch that a step computes at a time.

        None if a step computes the batch at once. The number of processes does not change this value, but only a run
        with one process divides batches.
        """
        return part_tokens(self.resolved.trainer, self.resolved.options, self.compiled, self.fitting)

    @property
    def shares_trunk(self) -> bool:
        """Return whether a training step computes the frozen trunk once for policy and reference.

        A compiled step does not do so with a moving reference: each of its updates raises the rank of the reference's
        LoRA factors, so the step would be compiled again.
        """
        if self.engine.trunk is None or self.ranks.size > 1 or self.stream or self.resolved.settings.qat_enable:
            return False
        return not (self.compiled and getattr(self.resolved.options, "reference_moves", False))

    def evaluates(self, split: str) -> bool:
        """Return whether the run evaluates on this split."""
        return split in self.rows and self.limits[split] != 0

    def policy_of(self, model: nn.Module) -> Scorer:
        """Return the scorer that computes the log-probs of a model in this run."""
        if model is self.model:
            return self.policy
        return self._shared(self._method(model, Keep.ALL).policy)

    def _method(self, model: nn.Module, keep: Keep) -> SelectedMethod:
        """Return the method that an earlier run found exact on this model. If there is none, run the probe."""
        settings, examples, known = self.resolved.settings, self._long_examples(), None
        if settings.engine != "plain":
            with suppress(UserError):  # raised for adapters of an unsupported kind, whose base weights are unknown
                digest = self.base_digest if model is self.model else weights_digest(model)
                known = KnownChoice(digest, model, settings, examples, keep, self._may_pack)
        with explained(model, settings, starts=True):
            choice = choose_policy(model, settings, examples, keep, known, self._may_pack)
        if isinstance(choice.policy, PackedPolicy):
            longest = int(in_one_row(self.lengths(next(iter(self.rows)))).prompt.max())
            always = bool(settings.token_budget)  # the budget counts packed rows
            choice.policy.costs = choice.policy.costs._replace(always=always, longest=longest)
        return choice

    def _shared(self, policy: Scorer) -> Scorer:
        return SharedPolicy(policy, self.ranks) if self.ranks.size > 1 else policy
