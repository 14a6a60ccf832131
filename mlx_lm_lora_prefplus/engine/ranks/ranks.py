"""The collective calls of several processes, and what they compare before they begin."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map
from tqdm import tqdm

from ...errors import UserError
from ..arrays import as_numpy
from ..files.run_state import RunState
from .agreement import described, differences, failures
from .heartbeat import GO_ON, Heartbeat
from .hosts import connect
from .meeting import Meeting


class Ranks:
    """The processes of this run, by whatever backend MLX was started with; one if it was started alone.

    rank: which of them this is. size: how many they are. phase: what this process is doing.
    """

    def __init__(self):
        self.group = connect()
        self.rank, self.size = self.group.rank(), self.group.size()
        self.phase = "starting"
        self._heartbeat: Heartbeat | None = None
        self._log: Callable[[str], object] = print

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def enter(self, phase: str) -> None:
        """Say what this process does from now on, such as "training". The others name it if this one fails."""
        self.phase = phase
        if self._heartbeat:
            self._heartbeat.enter(phase)

    @contextmanager
    def doing(self, phase: str) -> Iterator[None]:
        """`enter` a phase for what is inside. After an error it stays, for it says where the error came."""
        before = self.phase
        self.enter(phase)
        yield
        self.enter(before)

    def leave(self, failure: str | None = None) -> None:
        """This process makes no more collective calls. failure: why the others must end too, if they must."""
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat:
            heartbeat.leave(failure)

    @contextmanager
    def together(self, log: Callable[[str], object]) -> Iterator[None]:
        """A run of all processes: one that fails inside ends all others.

        log: takes the message of the heartbeat, where that has to end the process.

        Raises:
            UserError: another process failed; it says which one, in what, and why.
        """
        self._log = log
        try:
            yield
        except BaseException as error:
            lost = isinstance(error, Exception) and is_lost_peer(error)
            # A launcher that sees one process end sends SIGTERM to the others.
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
        """Compare what each process puts into the dict, by names that a user knows. Collective, at its end.

        The first comparison comes before any other collective call. An error inside one of the processes is sent
        to all. The heartbeat begins after it.

        Raises:
            UserError: values differ, or another process failed.
        """
        given: dict[str, Any] = {}
        failure: Exception | None = None
        try:
            yield given
        except Exception as error:
            if self.size == 1 or self._heartbeat:  # `together` tells the others
                raise
            failure = error
        if self.size == 1:
            return
        meeting = None if self._heartbeat else Meeting(self.rank)
        own = {"given": given, "failure": failure and described(failure), "meeting": meeting and meeting.told}
        told = self.gather(own)
        if failure is not None:
            raise failure
        if problem := failures([one["failure"] for one in told]) or differences([one["given"] for one in told]):
            self.leave()  # the others know
            raise UserError(problem)
        if meeting:
            self._meet(meeting, [one["meeting"] for one in told])

    def _meet(self, meeting: Meeting, told: list[dict[str, Any]]) -> None:
        """Begin the heartbeat, if every process can."""
        heartbeat = meeting.heartbeat(told)
        unlinked = [rank for rank, linked in enumerate(self.gather(heartbeat is not None)) if not linked]
        if heartbeat and not unlinked:
            heartbeat.log, self._heartbeat = self._log, heartbeat
            return
        if heartbeat:
            heartbeat.leave()
        if self.first:
            places = " or ".join(f"{host}:{port}" for host, port in told[0]["places"])
            tqdm.write(
                f"[WARNING] Ranks {', '.join(map(str, unlinked))} cannot connect to rank 0 at {places}: a process that "
                "hangs will not be named, and one that fails is noticed when the next one waits for it."
            )

    def gather(self, value: Any) -> list[Any]:
        """What each process brings, as JSON. Collective."""
        text = np.frombuffer(json.dumps(value, default=str).encode(), np.uint8)
        (length,) = self.largest(len(text))
        padded = np.pad(text, (0, length - len(text)), constant_values=ord(" "))
        self._count()
        gathered = mx.distributed.all_gather(mx.array(padded), group=self.group)
        return [json.loads(bytes(row)) for row in as_numpy(gathered).reshape(self.size, length)]

    def _count(self) -> None:
        """Before each collective call: whoever has made fewer is the one that the others wait for."""
        if self._heartbeat:
            self._heartbeat.calls += 1

    def sum(self, value: mx.array) -> mx.array:
        """The sum over all processes, the same in each."""
        self._count()
        return mx.distributed.all_sum(value, group=self.group) if self.size > 1 else value

    def sum_gradients(self, gradient: Any) -> Any:
        """The sum of a tree of gradients over all processes."""
        if self.size == 1:
            return gradient
        self._count()
        summed = tree_map(lambda value: value * self.size, average_gradients(gradient, self.group))
        mx.eval(summed)  # now and in every process: one that leaves it for later lets the others wait
        self.confirm()
        return summed

    def confirm(self) -> None:
        """Make sure that what the collective calls before this one gave is whole. Collective.

        Where a process dies in a call of MLX's ring, another one may get half a sum without an error. Its next call
        fails or waits, so nothing is kept or shown before this one has succeeded.
        """
        self.largest(0)

    def largest(self, *values: int) -> list[int]:
        """The largest of each number over all processes. Collective."""
        if self.size == 1:
            return list(values)
        self._count()
        return cast(list[int], mx.distributed.all_max(mx.array(values, mx.int32), group=self.group).tolist())

    def known_to_all(self, known: np.ndarray) -> np.ndarray:
        """Which entries of a bool array are true in every process."""
        if self.size == 1:
            return known
        return as_numpy(self.sum(mx.array(known.astype(np.int32)))) == self.size

    def from_first(self, value: mx.array) -> mx.array:
        """The first process's value, in each; all bring arrays of the same shape and type."""
        if self.size == 1:
            return value
        # As integers, so that every bit arrives whatever the others hold.
        bits = value.reshape(-1).view(mx.uint8).astype(mx.int32)
        shared = self.sum(bits if self.first else mx.zeros_like(bits))
        mx.eval(shared)
        return shared.astype(mx.uint8).view(value.dtype).reshape(value.shape)

    def state_from_first(self, state: RunState | None) -> RunState | None:
        """The first process's saved state, in each; the others bring None."""
        if self.size == 1:
            return state
        shared: dict[str, Any] | None = None
        if state is not None:
            shapes = {
                tree: {name: [value.shape, str(value.dtype).rpartition(".")[2]] for name, value in group.items()}
                for tree, group in state.arrays.items()
            }
            shared = {"values": state.values, "shapes": shapes}
        text = json.dumps(shared).encode() if self.first else b""
        (length,) = self.largest(len(text))
        own = np.frombuffer(text, np.uint8) if self.first else np.zeros(length, np.uint8)
        shared = json.loads(bytes(as_numpy(self.from_first(mx.array(own)))))
        if shared is None:
            return None
        arrays: dict[str, dict[str, mx.array]] = {}
        for tree, group in shared["shapes"].items():
            arrays[tree] = {}
            for name, (shape, kind) in group.items():
                value = state.arrays[tree][name] if state else mx.zeros(shape, getattr(mx, kind))
                # A half-done step's gradient is there once: the processes add up.
                arrays[tree][name] = self.from_first(value) if tree != "gradient" else value
        return RunState(arrays, shared["values"])


def is_lost_peer(error: Exception) -> bool:
    """Whether an error says that another process cannot be reached any more."""
    return any(sign in str(error) for sign in ("[ring]", "[mpi]", "[nccl]", "[jaccl]", "connection to a peer"))
