"""Detect within seconds that one of several processes has failed or hangs, and report it to all others.

A thread in each process keeps a TCP connection to rank 0 and sends a line about once a second (see `Peer`). If a
connection closes without a farewell line, its process has died. Rank 0 checks for processes that hang, and sends the
reason to all if they must end. The other processes check rank 0.
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
"""Seconds that the main thread has to end once there is a reason. Then the thread ends the process."""

LONGEST_LINE = 1 << 20

GO_ON = "Files that were saved are complete. Start all processes again with --resume to continue."
"""Advice for the case that another process has ended the run."""


@dataclass(eq=False)
class Link:
    """A connection to another process. rank: of that process; None until its first line has named it."""

    socket: socket.socket
    rank: int | None
    incoming: bytes = b""
    outgoing: bytes = b""

    def say(self, **what: Any) -> None:
        """Add a line to the lines to be sent."""
        self.outgoing += json.dumps(what).encode() + b"\n"

    def flush(self) -> None:
        """Send as much as can be sent without waiting. An error is noticed where the connection is read."""
        with suppress(OSError):
            self.outgoing = self.outgoing[self.socket.send(self.outgoing) :] if self.outgoing else b""

    def lines(self) -> list[dict[str, Any]] | None:
        """Return the complete lines received so far; None if the connection is closed or a line is invalid."""
        try:
            data = self.socket.recv(1 << 16)
            *lines, self.incoming = (self.incoming + data).split(b"\n")
            told = [json.loads(line) for line in lines]
        except BlockingIOError:
            return []
        except (OSError, ValueError):
            return None
        whole = data and len(self.incoming) < LONGEST_LINE and all(isinstance(line, dict) for line in told)
        return told if whole else None


class Heartbeat(threading.Thread):
    """The heartbeat thread of one process.

    phase: what this process is doing. calls: how many collective calls it has made.
    reason: why all processes must end, once there is a reason. log: receives the message with which the thread ends the
    process.
    """

    def __init__(self, rank: int, peers: Sequence[Peer], limit: float, token: str):
        """limit: see `hung`; 0: no process counts as hung. token: a secret that begins each connection, to reject
        strangers.
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
        """Start in rank 0. The others connect to this socket."""
        self._watch(server, self._accept)
        self.start()

    def join_first(self, connection: socket.socket) -> None:
        """Start in another rank, with a connection to rank 0."""
        self._linked(connection, 0).say(token=self.token, rank=self.rank)
        self.start()

    def enter(self, phase: str) -> None:
        """Set what this process does from now on, such as "training", and send it to the others."""
        self.phase = phase
        self._wake()

    def leave(self, failure: str | None = None) -> None:
        """Announce that this process ends and no longer needs the others. failure: why the others must end too, if they
        must.
        """
        if failure is not None:
            self._set_reason(f"{self.peers[self.rank]} failed while {self.phase}: {failure}")
        self._leaves = True
        self._wake()
        self.join(timeout=2)

    def reason_within(self, seconds: float) -> str | None:
        """Wait at most `seconds` for a reason why all must end, and return it."""
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
                # This process was paused (SIGSTOP). The silence that it observed says nothing about the others.
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
        """Send a line to every link where one is due, and resend what could not be sent earlier."""
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
        """End this process, unless its main thread has time left or is saving."""
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
        told = link.lines()
        for line in told or []:
            if link.rank is None:
                if line.get("token") != self.token or line.get("rank") not in range(1, len(self.peers)):
                    told = None
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
        if told is None:
            self._selector.unregister(link.socket)
            self._links.remove(link)
            link.socket.close()
            if link.rank is not None and not self.peers[link.rank].left:
                peer = self.peers[link.rank]
                why = "it was killed, or its machine or the connection to it failed"
                self._set_reason(f"{peer} is gone while {peer.phase}: {why}.")
