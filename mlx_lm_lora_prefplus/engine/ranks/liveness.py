"""Tells processes that work from processes that hang, by what each says of itself about once a second."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

WORKING = 0.005
"""CPU seconds a second from which a process counts as working, though it makes no collective calls."""


@dataclass
class Peer:
    """What is known of one of the processes.

    phase: what it is doing. calls: the collective calls that it has made. cpu: seconds of CPU time it has used.
    heard, advanced: when it was last heard of and when it last advanced, by the clock of the process that asks.
    left: whether it needs the others no more.
    """

    rank: int
    host: str
    pid: int
    phase: str = "starting"
    calls: int = 0
    cpu: float = 0.0
    heard: float = field(default_factory=time.monotonic)
    advanced: float = field(default_factory=time.monotonic)
    left: bool = False

    def __str__(self) -> str:
        return f"Rank {self.rank} (pid {self.pid} on {self.host})"

    def note(self, phase: str, calls: int, cpu: float, now: float) -> None:
        """Take in what it says of itself."""
        self.heard = now
        if (phase, calls) != (self.phase, self.calls) or cpu - self.cpu > WORKING * (now - self.advanced) + 0.01:
            self.phase, self.calls, self.cpu, self.advanced = phase, calls, cpu, now


def hung(peers: Sequence[Peer], limit: float, now: float) -> str | None:
    """A sentence that names the processes that hang; None where each one answers, and works or waits for others.

    A process that waits in a collective call has made one more than the process it waits for. So only those that have
    made the fewest can be stuck, and these are if they use no CPU time either.

    limit: seconds for which a process must neither have been heard of nor have advanced.
    """
    present = [peer for peer in peers if not peer.left]
    silent = [peer for peer in present if now - peer.heard > limit]
    if silent:
        named = ", ".join(f"{peer} (last heard of while {peer.phase})" for peer in silent)
        return f"No answer for {limit:g} s from {named}: paused, frozen, or its connection is gone."
    behind = [peer for peer in present if peer.calls < max(other.calls for other in present)]
    fewest = min((peer.calls for peer in behind), default=0)
    answering = [peer for peer in behind if now - peer.heard <= limit / 2]  # the others will be silent ones soon
    stuck = [peer for peer in answering if peer.calls == fewest and now - peer.advanced > limit]
    if stuck:
        named = ", ".join(f"{peer} (while {peer.phase})" for peer in stuck)
        return f"The others wait for {named}, which has done nothing for {limit:g} s."
    return None
