"""Connect the processes for the heartbeat. Its connections are separate from those of MLX."""

import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .heartbeat import Heartbeat
from .hosts import rank_timeout, read_hosts
from .liveness import Peer

PATIENCE = 3.0
"""Seconds to try to connect to one address of rank 0."""


class Meeting:
    """Connects this process to rank 0, or lets the other processes connect to it if it is rank 0.

    contact: what this process must send to the others first, by other means.
    """

    def __init__(self, rank: int):
        self.rank = rank
        self.contact: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid()}
        self._server: socket.socket | None = None
        if rank == 0:
            addresses = _addresses()
            local = all(address.startswith("127.") for address in addresses)
            self._server = socket.create_server(("127.0.0.1" if local else "", 0), backlog=256)
            port = self._server.getsockname()[1]
            self.contact |= {"places": [[address, port] for address in addresses]}
            self.contact |= {"token": secrets.token_hex(16), "limit": rank_timeout()}

    def heartbeat(self, contacts: Sequence[dict[str, Any]]) -> Heartbeat | None:
        """Connect, and return the running heartbeat; None if rank 0 cannot be reached. contacts: for each
        rank, its `contact`.
        """
        first = contacts[0]
        peers = [Peer(rank, one["host"], one["pid"]) for rank, one in enumerate(contacts)]
        heartbeat = Heartbeat(self.rank, peers, first["limit"], first["token"])
        if self._server:
            heartbeat.serve(self._server)
            return heartbeat
        for host, port in first["places"]:
            if host.startswith("127.") and first["host"] != self.contact["host"]:
                continue
            with suppress(OSError):
                heartbeat.join_first(socket.create_connection((host, port), timeout=PATIENCE))
                return heartbeat
        return None


def _addresses() -> list[str]:
    """Return addresses at which the other processes may reach this one, the most probable first."""
    if hosts := read_hosts():
        return [place.rpartition(":")[0] for place in hosts[0]]
    found = [os.environ.get("NCCL_HOST_IP", ""), os.environ.get("MLX_JACCL_COORDINATOR", "").rpartition(":")[0]]
    with suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing, but selects the interface that leads outside
        found.append(probe.getsockname()[0])
    return list(dict.fromkeys([*filter(None, found), "127.0.0.1"]))
