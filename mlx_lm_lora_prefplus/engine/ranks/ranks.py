"""The collective calls of several processes, and a comparison of their settings and data before training."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from tqdm import tqdm

from ...errors import UserError
from ..arrays import as_numpy
from ..files.run_state import RunState
from .agreement import described, differences, failures
from .heartbeat import GO_ON, Heartbeat
from .hosts import connect
from .meeting import Meeting

CALL_BYTES = 32 * 2**20
"""About how many bytes of gradients are summed in one call. Few large calls are faster than many small ones."""


class Ranks:
    """The processes of this run, connected by the backend with which MLX was started. A run may have only one process.

    rank: the number of this process. size: the number of processes. phase: what this process is doing.
    """

    def __init__(self):
        self.group = connect()
        self.rank, self.size = self.group.rank(), self.group.size()
        self.phase = "starting"
        self._heartbeat: Heartbeat | None = None
        self._log: Callable[[str], object] = print

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes files and prints."""
        return self.rank == 0

    def enter(self, phase: str) -> None:
        """Set what this process does from now on, such as "training". If it fails, the messages of the other processes
        name the phase.
        """
        self.phase = phase
        if self._heartbeat:
            self._heartbeat.enter(phase)

    @contextmanager
    def doing(self, phase: str) -> Iterator[None]:
        """Enter a phase for the duration of the context. After an error, the phase does not change back, so that
        messages show where the error happened.
        """
        before = self.phase
        self.enter(phase)
        yield
        self.enter(before)

    def leave(self, failure: str | None = None) -> None:
        """Announce that this process makes no more collective calls. failure: the error because of which the others
        must end too; None if they need not.
        """
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat:
            heartbeat.leave(failure)

    @contextmanager
    def together(self, log: Callable[[str], object]) -> Iterator[None]:
        """A context for a run of all processes. If one of them fails inside the context, all others end.

        log: a function that receives the last message, if the heartbeat thread has to end this process.

        Raises:
            UserError: Another process failed. The message names the process, what it was doing, and the reason.
        """
        self._log = log
        try:
            yield
        except BaseException as error:
            lost = isinstance(error, Exception) and is_lost_peer(error)
            # A launcher that notices the end of one process sends SIGTERM to the others.
            stopped = isinstance(error, SystemExit)
            reason = self._heartbeat.reason_within(3.0 if lost else float(stopped)) if self._heartbeat else None
            if lost or (stopped and reason):
                self.leave()
                raise UserError(f"{reason or f'Another process is gone ({error}).'} {GO_ON}") from error
            self.leave(described(error))
            raise
        self.leave()

    @contextmanager
    def same(self) -> Iterator[dict[str, Any]]:
        """Compare values between processes. Inside the context, each process puts its values into the dict, under names
        that a user knows.

        At the end of the context, the processes exchange their dicts and compare them. This must be the first
        collective call. If one process fails inside the context, all processes receive its error. After a successful
        comparison, the heartbeat starts.

        Raises:
            UserError: Values differ, or another process failed.
        """
        given: dict[str, Any] = {}
        failure: Exception | None = None
        try:
            yield given
        except Exception as error:
            if self.size == 1 or self._heartbeat:  # `together` reports the error to the other processes
                raise
            failure = error
        if self.size == 1:
            return
        meeting = None if self._heartbeat else Meeting(self.rank)
        own = {"given": given, "failure": failure and described(failure), "meeting": meeting and meeting.contact}
        received = self.gather(own)
        if failure is not None:
            raise failure
        if problem := failures([one["failure"] for one in received]) or differences([one["given"] for one in received]):
            self.leave()  # all processes find the same problem
            raise UserError(problem)
        if meeting:
            self._meet(meeting, [one["meeting"] for one in received])

    def _meet(self, meeting: Meeting, contacts: list[dict[str, Any]]) -> None:
        """Start the heartbeat if every process is connected to rank 0."""
        heartbeat = meeting.heartbeat(contacts)
        unlinked = [rank for rank, linked in enumerate(self.gather(heartbeat is not None)) if not linked]
        if heartbeat and not unlinked:
            heartbeat.log, self._heartbeat = self._log, heartbeat
            return
        if heartbeat:
            heartbeat.leave()
        if self.first:
            places = " or ".join(f"{host}:{port}" for host, port in contacts[0]["places"])
            tqdm.write(
                f"[WARNING] Ranks {', '.join(map(str, unlinked))} cannot connect to rank 0 at {places}. The run will "
                "not detect a process that hangs. It will detect one that fails when another process waits for it."
            )

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of each process, in the order of ranks. Values are sent as JSON. Collective."""
        text = np.frombuffer(json.dumps(value, default=str).encode(), np.uint8)
        (length,) = self.largest(len(text))
        padded = np.pad(text, (0, length - len(text)), constant_values=ord(" "))
        self._count()
        gathered = mx.distributed.all_gather(mx.array(padded), group=self.group)
        return [json.loads(bytes(row)) for row in as_numpy(gathered).reshape(self.size, length)]

    def _count(self) -> None:
        """Count a collective call. The process with the fewest calls is the one that the others wait for."""
        if self._heartbeat:
            self._heartbeat.calls += 1

    def sum(self, value: mx.array) -> mx.array:
        """Return the sum of `value` over all processes. Collective."""
        self._count()
        return mx.distributed.all_sum(value, group=self.group) if self.size > 1 else value

    def sum_gradients(self, gradient: Any) -> Any:
        """Return the sum of a tree of gradients over all processes. Collective."""
        if self.size == 1:
            return gradient
        self._count()
        names, values = zip(*tree_flatten(gradient), strict=True)
        summed: list[mx.array] = []
        for own in _in_calls(values):
            whole = mx.distributed.all_sum(mx.concatenate([value.reshape(-1) for value in own]), group=self.group)
            # Evaluate now, in every process: a process that does it later lets the others wait. And evaluate nothing
            # that uses the sum: it would let the GPU wait for the network, which has a time limit on Metal.
            mx.eval(whole)
            parts = mx.split(whole, np.cumsum([value.size for value in own])[:-1].tolist())
            summed += [part.reshape(value.shape) for part, value in zip(parts, own, strict=True)]
        self.confirm()
        return tree_unflatten(list(zip(names, summed, strict=True)))

    def confirm(self) -> None:
        """Make sure that the results of earlier collective calls are complete. Collective.

        If a process dies during a call of MLX's ring, another process may receive an incomplete sum without an error.
        The next call then fails or waits. Results are therefore used only after this call has succeeded.
        """
        self.largest(0)

    def largest(self, *values: int) -> list[int]:
        """Return the largest of each number over all processes. Collective."""
        if self.size == 1:
            return list(values)
        self._count()
        return cast(list[int], mx.distributed.all_max(mx.array(values, mx.int32), group=self.group).tolist())

    def known_to_all(self, known: np.ndarray) -> np.ndarray:
        """Return, for each entry of a bool array, whether it is true in every process. Collective."""
        if self.size == 1:
            return known
        return as_numpy(self.sum(mx.array(known.astype(np.int32)))) == self.size

    def from_first(self, value: mx.array) -> mx.array:
        """Return rank 0's value in every process. All processes must pass arrays of the same shape and type.
        Collective.
        """
        if self.size == 1:
            return value
        # Sums of integers preserve every bit; the other processes add zeros.
        bits = value.reshape(-1).view(mx.uint8).astype(mx.int32)
        shared = self.sum(bits if self.first else mx.zeros_like(bits))
        mx.eval(shared)
        return shared.astype(mx.uint8).view(value.dtype).reshape(value.shape)

    def state_from_first(self, state: RunState | None) -> RunState | None:
        """Return rank 0's saved state in every process. All other processes pass None. Collective."""
        if self.size == 1:
            return state
        shared: dict[str, Any] | None = None
        if state is not None:
            shapes = {
                tree: {name: [value.shape, str(value.dtype).rpartition(".")[2]] for name, value in group.items()}
                for tree, group in state.arrays.items()
            }
            shared = {"values": state.values, "shapes": shapes}
        shared = self.gather(shared)[0]
        if shared is None:
            return None
        arrays: dict[str, dict[str, mx.array]] = {}
        for tree, group in shared["shapes"].items():
            arrays[tree] = {}
            for name, (shape, kind) in group.items():
                value = state.arrays[tree][name] if state else mx.zeros(shape, getattr(mx, kind))
                # Only the first process receives the gradient of an incomplete step, because gradients are summed.
                arrays[tree][name] = self.from_first(value) if tree != "gradient" else value
        return RunState(arrays, shared["values"])


def _in_calls(values: Sequence[mx.array]) -> list[list[mx.array]]:
    """Group arrays of the same type that are summed in one call, until a group has `CALL_BYTES`."""
    calls: list[list[mx.array]] = []
    for value in values:
        last = calls[-1] if calls else []
        if not last or last[0].dtype != value.dtype or sum(own.nbytes for own in last) >= CALL_BYTES:
            calls.append([])
        calls[-1].append(value)
    return calls


def is_lost_peer(error: Exception) -> bool:
    """Return whether an error means that another process can no longer be reached."""
    return any(sign in str(error) for sign in ("[ring]", "[mpi]", "[nccl]", "[jaccl]", "connection to a peer"))
