"""Detect processes that hang, from the status that each process sends about once a second."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

WORKING = 0.005
"""CPU seconds per second of time. A process that uses more than this counts as working, even if it makes no collective
calls.
"""


@dataclass
class Peer:
    """The last known status of one process.

    phase: what it is doing. calls: the collective calls that it has made. cpu: seconds of CPU time that it has used.
    heard, advanced: when its last status arrived and when it last made progress, by the clock of the receiver.
    left: whether it no longer needs the others.
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
        """Update the status from a line of the process."""
        self.heard = now
        if (phase, calls) != (self.phase, self.calls) or cpu - self.cpu > WORKING * (now - self.advanced) + 0.01:
            self.phase, self.calls, self.cpu, self.advanced = phase, calls, cpu, now


def hung(peers: Sequence[Peer], limit: float, now: float) -> str | None:
    """Return a sentence that names the processes that hang; None if no process hangs.

    A process hangs in two cases. Either no status has arrived from it for `limit` seconds. Or other processes have
    waited for it for `limit` seconds, and it has used almost no CPU time since. A waiting process has already counted
    the collective call in which it waits. The processes it waits for are therefore those with the fewest calls.

    limit: seconds.
    """
    present = [peer for peer in peers if not peer.left]
    silent = [peer for peer in present if now - peer.heard > limit]
    if silent:
        named = ", ".join(f"{peer} (last heard of while {peer.phase})" for peer in silent)
        return f"No answer for {limit:g} s from {named}: paused, frozen, or its connection is gone."
    behind = [peer for peer in present if peer.calls < max(other.calls for other in present)]
    fewest = min((peer.calls for peer in behind), default=0)
    answering = [peer for peer in behind if now - peer.heard <= limit / 2]  # others soon count as silent
    stuck = [peer for peer in answering if peer.calls == fewest and now - peer.advanced > limit]
    if stuck:
        named = ", ".join(f"{peer} (while {peer.phase})" for peer in stuck)
        return f"The others wait for {named}, which has done nothing for {limit:g} s."
    return None
