"""Warn before the memory of a GPU is full. A Mac would then swap and seem frozen."""

import mlx.core as mx

from ...plugin import Batch, Scorer
from ...settings import RunSettings
from ..log.journal import Journal
from ..logprobs.computed import tokens_of
from ..memory import advice as memory
from .state import LoopState

NEAR = 0.9
"""The guard warns above this share of the limit."""

NAME = "memory"
"""Name of the warning in the metrics file."""


class MemoryGuard:
    """Before each micro-batch, compares the memory in use with the device's limit. It warns at most once.

    It warns if the memory in use comes near the limit. It also warns before a batch larger than all earlier ones, if
    its memory would come near the limit; the estimate assumes that memory grows in proportion to tokens. Without a
    limit (on a CPU) it does nothing.
    """

    def __init__(self, settings: RunSettings, state: LoopState, journal: Journal, policy: Scorer):
        self.settings, self.state, self.journal, self.policy = settings, state, journal, policy
        self.limit = memory.device_limit()
        self._largest, self._warned = 0, False  # tokens of the largest batch so far

    def check(self, batch: Batch) -> None:
        """Check the memory in use and the memory that this batch will need."""
        if self.limit is None or self._warned:
            return
        tokens = tokens_of(self.policy, batch)
        if self._largest:
            resident, peak = mx.get_active_memory(), mx.get_peak_memory()
            growth = max(tokens / self._largest, 1.0)
            expected = resident + growth * max(peak - resident, 0)
            if expected > NEAR * self.limit:
                self._warn(batch, peak, int(expected))
        else:  # exclude the peak of loading and of the reference pass
            counters = self.state.counters
            counters.peak_memory = max(counters.peak_memory, mx.get_peak_memory())
            mx.reset_peak_memory()
        self._largest = max(self._largest, tokens)

    def _warn(self, batch: Batch, peak: int, expected: int) -> None:
        assert self.limit is not None
        what = (
            f"a step takes {memory.size(peak)} of memory"
            if peak > NEAR * self.limit
            else f"the next batch has more tokens than any before it and may need {memory.size(expected)} of memory"
        )
        changes = "; ".join(change for change, _ in list(memory.ways(batch, self.settings))[:2])
        self._warned = True
        self.journal.warn(
            NAME,
            f"{what}, and the device should not use more than {memory.size(self.limit)}. Beyond that a Mac swaps and "
            "seems frozen, and a CUDA device runs out of memory. Stop the run (its progress is saved) and change one "
            f"of these keys: {changes}. `mlx_lm_lora.prefplus check CONFIG --fit` finds the smallest change.",
            self.state.counters.iteration + 1,
        )
