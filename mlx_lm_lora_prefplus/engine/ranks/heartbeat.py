"""Detect within seconds that one of several processes has failed or hangs, and report it to all others.

A thread in each process keeps a TCP connection to rank 0 and sends its status about once a second (see `Peer`). A
process that ends normally announces it first; if a connection closes without that, the process has died. Rank 0 also
checks whether another process hangs, and the other processes check whether rank 0 hangs. If a process has failed, rank
0 sends the reason to all, and all end.
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from .liveness import Peer, hung

GRACE = 5.0
"""If the run must end, the main thread has this many seconds to end. After that, the heartbeat thread ends
the process.
"""

LONGEST_LINE = 1 << 20

GO_ON = "Files that were saved are complete. Start all processes again with --resume to continue."
"""Advice in messages about a run that ended because another process failed."""


@dataclass(eq=False)
class Link:
    """A connection to another process. rank: the rank of that process; None until its first line has arrived."""

    socket: socket.socket
    rank: int | None
    incoming: bytes = b""
    outgoing: bytes = b""

    def say(self, **what: Any) -> None:
        """Put a line into the queue of lines to be sent."""
        self.outgoing += json.dumps(what).encode() + b"\n"

    def flush(self) -> None:
        """Send as much of the queue as is possible without waiting. Errors are ignored here: `lines` detects a closed
        connection.
        """
        with suppress(OSError):
            self.outgoing = self.outgoing[self.socket.send(self.outgoing) :] if self.outgoing else b""

    def lines(self) -> list[dict[str, Any]] | None:
        """Return the complete lines received so far; None if the connection is closed or a line is invalid."""
        try:
            data = self.socket.recv(1 << 16)
            *lines, self.incoming = (self.incoming + data).split(b"\n")
            received = [json.loads(line) for line in lines]
        except BlockingIOError:
            return []
        except (OSError, ValueError):
            return None
        whole = data and len(self.incoming) < LONGEST_LINE and all(isinstance(line, dict) for line in received)
        return received if whole else None


class Heartbeat(threading.Thread):
    """The heartbeat thread of one process.

    phase: what this process is doing. calls: how many collective calls it has made.
    reason: why all processes must end; None while there is no reason. log: a function that receives the last message,
    if the thread ends the process.
    """

    def __init__(self, rank: int, peers: Sequence[Peer], limit: float, token: str):
        """limit: seconds, see `hung`; 0: no process counts as hung. token: a secret that each process sends first, so
        that other programs cannot connect.
        """
        super().__init__(name="heartbeat", daemon=True)
        self.rank, self.peers, self.limit, self.token = rank, list(peers), limit, token
        self.phase, self.calls = "starting", 0
        self.reason: str | None = None
        self.log: Callable[[str], object] = print
        self.interval = min(1.0, limit / 10) if limit else 1.0
        self._has_reason, self._leaves, self._ends_at = threading.Event(), False, 0.0
        self._selector, self._links = selectors.DefaultSelector(), list[Link]()
        self._spoke, self._said = 0.0, ""
        self._waker, woken = socket.socketpair()
        self._waker.setblocking(False)
        self._watch(woken, self._woken)

    # Methods for the main thread.

    def serve(self, server: socket.socket) -> None:
        """Start the heartbeat in rank 0. server: the socket to which the other processes connect."""
        self._watch(server, self._accept)
        self.start()

    def join_first(self, connection: socket.socket) -> None:
        """Start the heartbeat in a rank other than 0. connection: to rank 0."""
        self._linked(connection, 0).say(token=self.token, rank=self.rank)
        self.start()

    def enter(self, phase: str) -> None:
        """Set what this process does from now on, such as "training", and send it to the others."""
        self.phase = phase
        self._wake()

    def leave(self, failure: str | None = None) -> None:
        """Announce that this process ends. failure: the error that ended it, because of which the others must end too;
        None if it ended normally.
        """
        if failure is not None:
            self._set_reason(f"{self.peers[self.rank]} failed while {self.phase}: {failure}")
        self._leaves = True
        self._wake()
        self.join(timeout=2)

    def reason_within(self, seconds: float) -> str | None:
        """Wait at most `seconds` for a reason why all processes must end. Return the reason; None if there is none."""
        self._has_reason.wait(seconds)
        return self.reason

    def _wake(self) -> None:
        with suppress(OSError):  # enough wake-ups are already pending
            self._waker.send(b"\0")

    # Methods of the thread.

    def run(self) -> None:
        """Receive and send lines until this process leaves or must end."""
        last = time.monotonic()
        while not self._leaves:
            for key, _ in self._selector.select(self.interval):
                key.data()
            now = time.monotonic()
            if now - last > max(self.limit / 2, 5 * self.interval):
                # This process was paused (SIGSTOP) and received nothing meanwhile. The others may be well.
                for peer in self.peers:
                    peer.heard = peer.advanced = now
            last = now
            self._speak(now)
            if self.limit and self.reason is None:
                watched = self.peers if self.rank == 0 else self.peers[:1]
                if found := hung(watched, self.limit, now):
                    self._set_reason(found)
            if self.reason is not None:
                self._end(now)
        for link in self._links:
            if self.reason:
                link.say(reason=self.reason)
            link.say(left=True)
            link.flush()
            with suppress(OSError):
                link.socket.shutdown(socket.SHUT_WR)  # not close(): that could discard lines that were just sent

    def _speak(self, now: float) -> None:
        """Send the status to every connection if it is due, and the lines that could not be sent earlier."""
        due = now - self._spoke >= self.interval or self.phase != self._said
        if due:
            self._spoke, self._said = now, self.phase
            self.peers[self.rank].note(self._said, self.calls, time.process_time(), now)
        for link in self._links:
            link.flush()
            if due and link.rank is not None and not link.outgoing:
                link.say(beat=[self._said, self.calls, time.process_time()])
            link.flush()

    def _end(self, now: float) -> None:
        """Send the reason to all processes. After `GRACE` seconds, end this process, but in rank 0 only when it is not
        saving.
        """
        if not self._ends_at:
            self._ends_at = now + GRACE
            for link in self._links:
                link.say(reason=self.reason)
        if now < self._ends_at or (self.rank == 0 and self.phase == "saving"):
            return
        message = f"[ERROR] {self.reason} {GO_ON}"
        self.log(f"{message}\n")
        with suppress(OSError, ValueError, AttributeError):  # closed, or None
            print(f"\n{message}", file=sys.__stderr__, flush=True)
        os._exit(1)

    def _set_reason(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            self._has_reason.set()

    def _watch(self, source: socket.socket, call: Callable[[socket.socket], object]) -> None:
        source.setblocking(False)
        self._selector.register(source, selectors.EVENT_READ, partial(call, source))

    def _woken(self, source: socket.socket) -> None:
        source.recv(1 << 10)

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):  # the peer is gone again
            self._linked(server.accept()[0], None)

    def _linked(self, connection: socket.socket, rank: int | None) -> Link:
        link = Link(connection, rank)
        self._links.append(link)
        self._watch(connection, lambda _: self._listen(link))
        return link

    def _listen(self, link: Link) -> None:
        received = link.lines()
        for line in received or []:
            if link.rank is None:
                if line.get("token") != self.token or line.get("rank") not in range(1, len(self.peers)):
                    received = None
                    break
                link.rank = int(line["rank"])
                self._said = ""  # send the next line at once
            elif "beat" in line:
                phase, calls, cpu = line["beat"]
                self.peers[link.rank].note(phase, calls, cpu, time.monotonic())
            elif "reason" in line:
                self._set_reason(line["reason"])
            elif "left" in line:
                self.peers[link.rank].left = True
        if received is None:
            self._selector.unregister(link.socket)
            self._links.remove(link)
            link.socket.close()
            if link.rank is not None and not self.peers[link.rank].left:
                peer = self.peers[link.rank]
                why = "it was killed, or its machine or the connection to it failed"
                self._set_reason(f"{peer} is gone while {peer.phase}: {why}.")
