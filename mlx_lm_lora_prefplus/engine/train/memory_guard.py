"""Warns while training, before the memory of a GPU is full: on a Mac the system swaps then, and seems frozen."""

import mlx.core as mx

from ...plugin import Batch
from ...settings import RunSettings
from ..log.journal import Journal
from ..memory import advice as memory
from .state import LoopState

NEAR = 0.9
"""Share of the limit from which on the guard warns."""

NAME = "memory"
"""Of the warning in the metrics file."""


class MemoryGuard:
    """Compares the memory of the steps with the device's limit before each micro-batch, and warns once.

    Warns of what was reached, and of a batch larger than all before whose memory would come near the limit if the
    memory of a step grows with its tokens. Without a limit (on a CPU) it does nothing.
    """

    def __init__(self, settings: RunSettings, state: LoopState, journal: Journal):
        self.settings, self.state, self.journal = settings, state, journal
        self.limit = memory.device_limit()
        self._largest, self._warned = 0, False  # tokens of the largest batch so far

    def check(self, batch: Batch) -> None:
        """Look at the memory so far, and at what this batch will need."""
        if self.limit is None or self._warned:
            return
        tokens = batch.prompts.size + batch.completions.size
        if self._largest:
            resident, peak = mx.get_active_memory(), mx.get_peak_memory()
            growth = max(tokens / self._largest, 1.0)
            expected = resident + growth * max(peak - resident, 0)
            if expected > NEAR * self.limit:
                self._warn(batch, peak, int(expected))
        else:  # what loading and the reference pass took does not count
            counters = self.state.counters
            counters.peak_memory = max(counters.peak_memory, mx.get_peak_memory())
            mx.reset_peak_memory()
        self._largest = max(self._largest, tokens)

    def _warn(self, batch: Batch, peak: int, expected: int) -> None:
        assert self.limit is not None
        what = (
            f"a step takes {memory.size(peak)} of memory"
            if peak > NEAR * self.limit
            else f"the next batch has more tokens than all before and may need {memory.size(expected)} of memory"
        )
        changes = "; ".join(change for change, _ in list(memory.ways(batch, self.settings))[:2])
        self._warned = True
        self.journal.warn(
            NAME,
            f"{what}, and the device should not use more than {memory.size(self.limit)}: beyond that a Mac begins to "
            "swap and seems frozen, and a CUDA device runs out of memory. Stop the run (what it has reached is saved) "
            f"and change a key: {changes}. `mlx_lm_lora.prefplus check CONFIG --fit` finds the fewest.",
            self.state.counters.iteration + 1,
        )
