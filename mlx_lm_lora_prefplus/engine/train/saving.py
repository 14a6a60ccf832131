"""Save the progress of a run: first the adapters, then the state from which a later run continues."""

import time
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from tqdm import tqdm

from .inputs import TrainingInputs
from .snapshot import snapshot
from .state import LoopState


class Saver:
    """Writes the adapters, the state and the metrics of a run.

    saved_at: the iteration of the last saved state; -1 before the first.
    """

    def __init__(self, inputs: TrainingInputs, state: LoopState):
        self.inputs, self.state = inputs, state
        self.saved_at, self._saved_when = -1, time.monotonic()

    @property
    def is_overdue(self) -> bool:
        """Return whether `save_every_minutes` have passed since the last state was saved."""
        minutes = self.inputs.settings.save_every_minutes
        return minutes is not None and (time.monotonic() - self._saved_when) / 60 >= minutes

    def save(self) -> None:
        """Save during a run, with a numbered copy of the adapters.

        Raises:
            UserError: A weight is not finite. The earlier file is not replaced.
        """
        self._check_weights()
        if self.inputs.save is None:
            return
        iteration = self.state.counters.iteration
        with self.inputs.ranks.doing("saving"):
            adapter_file, numbered = self.inputs.save(iteration)
            self._save_state()
        tqdm.write(f"Iter {iteration}: Saved adapter weights to {adapter_file} and {numbered}.")

    def save_last(self) -> Path | None:
        """Save at the end of a run or after a signal, and return the adapter file. Errors as in `save`."""
        self._check_weights()
        if self.inputs.save is None:
            return None
        with self.inputs.ranks.doing("saving"):
            adapter_file, _ = self.inputs.save(None)
            if self.saved_at != self.state.counters.iteration:
                self._save_state()
        return adapter_file

    def _save_state(self) -> None:
        """Write the adapters, then the state. This order ensures that the adapters of every saved state exist."""
        inputs = self.inputs
        if inputs.metrics:
            inputs.metrics.sync()
        inputs.reference.save()
        state = snapshot(inputs, self.state)  # in every process, because gradients are summed over processes
        if inputs.states:
            inputs.states.save(state)
        self.saved_at, self._saved_when = self.state.counters.iteration, time.monotonic()

    def _check_weights(self) -> None:
        inputs, counters = self.inputs, self.state.counters
        weights = dict[str, mx.array](tree_flatten(inputs.policy.model.trainable_parameters())).values()
        if not mx.all(mx.stack([mx.isfinite(value).all() for value in weights])).item():
            problem = f"The weights are not finite at iteration {counters.iteration}."
            raise inputs.not_finite_error(problem, counters.step)
