"""The rows of a run and the order in which it visits them."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from datasets import Dataset
from mlx_lm_lora.trainer.sft_trainer import SFTTrainingArgs

from ..data import Split, prepare
from ..engine.adapters import adapters_off
from ..engine.probe import choose_policy
from ..engine.reference import reference_logps, with_reference
from ..errors import UserError
from ..plugin import Batch, Policy
from ..settings import RunSettings
from . import policy
from .config import Resolved

DEFAULT_ITERS = SFTTrainingArgs().iters
"""What the host takes where neither `iters` nor `epochs` is given."""

References = dict[str, np.ndarray | None]
"""Split → reference log-probs, (rows, 2); None where the mode has no reference."""


def read_rows(resolved: Resolved, tokenizer: Any) -> dict[str, Split]:
    """The splits that this run uses, as tokens."""
    wanted = [
        *(["train", "valid"] if resolved.settings.train else []),
        *(["test"] if resolved.settings.test else []),
    ]
    splits = prepare(resolved.data, tokenizer, wanted, add_bos=policy.uses_fallback_template(tokenizer))
    for name in ("train", "test"):
        if name in wanted and name not in splits:
            raise UserError(f"There are no {name} rows in {resolved.data.hf_dataset or resolved.data.data}.")
    return splits


class Work:
    """The model, the rows and the order in which a run visits them."""

    def __init__(self, resolved: Resolved, model: nn.Module, tokenizer: Any, rows: dict[str, Dataset]):
        self.resolved, self.model, self.tokenizer, self.rows = resolved, model, tokenizer, rows
        settings = resolved.settings
        self.engine = choose_policy(model, settings)
        self.compiled = mx.default_device().type == mx.gpu and self.engine.compilable
        self.limits = {"valid": settings.val_batches, "test": settings.test_batches}
        self.iters = self._iters(settings) if "train" in rows else 0

    def _iters(self, settings: RunSettings) -> int:
        per_epoch = math.ceil(len(self.rows["train"]) / settings.batch_size)
        return settings.iters or (settings.epochs or 0) * per_epoch or DEFAULT_ITERS

    def batches(self, split: str, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch of training, or all that the settings want evaluated of another split."""
        settings, rows = self.resolved.settings, self.rows[split]
        limit = self.limits.get(split, -1)
        if limit >= 0:
            rows = rows.select(range(min(len(rows), limit * settings.batch_size)))
        return self.resolved.trainer.iterate_batches(
            rows.with_format("numpy"),  # type: ignore[arg-type]
            batch_size=settings.batch_size,
            epoch=epoch,
            seed=settings.seed,
            shuffle=split == "train",
            multiple=32 if self.compiled else 1,
        )

    def visited(self, split: str) -> Iterator[Batch]:
        """The batches in which this run first sees each row."""
        for i, batch in enumerate(self.batches(split)):
            if split == "train" and i == self.iters:
                return
            yield batch

    def evaluates(self, split: str) -> bool:
        """Whether there is anything to evaluate on."""
        return split in self.rows and self.limits[split] != 0

    def policy_of(self, model: nn.Module) -> Policy:
        """The way that log-probs of a model are computed in this run."""
        return self.engine.policy if model is self.model else choose_policy(model, self.resolved.settings).policy

    def reference(self, given: nn.Module | None = None) -> References:
        """Reference log-probs of the rows that this run visits.

        given: a reference model that is loaded already.
        """
        used = [name for name in self.rows if name == "train" or self.evaluates(name)]
        if not self.resolved.trainer.needs_reference(self.resolved.options):
            return dict.fromkeys(used)
        model = given or self.model
        if given is None and self.resolved.settings.reference_model_path:
            model = policy.load_reference(self.resolved.settings, self.tokenizer)
        logps: References = {}
        with adapters_off(model) if model is self.model else nullcontext():
            for name in used:
                count = len(self.rows[name])
                logps[name] = reference_logps(
                    self.policy_of(model), self.visited(name), count, f"Reference, {name} rows"
                )
        del model
        mx.clear_cache()
        return logps

    def evaluation(self, split: str, reference: References) -> Iterator[Batch]:
        """The batches to evaluate a split on, with their reference."""
        return with_reference(self.batches(split), reference[split])
