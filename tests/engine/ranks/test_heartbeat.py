"""Two heartbeats in one process: what one says reaches the other, and strangers are not heard."""

import json
import socket

import pytest

from mlx_lm_lora_prefplus.engine.ranks.heartbeat import Heartbeat
from mlx_lm_lora_prefplus.engine.ranks.liveness import Peer


@pytest.fixture
def pair():
    """Rank 0, a function that connects to it, and rank 1, which is not started."""
    first, second = (Heartbeat(rank, [Peer(0, "a", 10), Peer(1, "b", 11)], 0, "secret") for rank in (0, 1))
    server = socket.create_server(("127.0.0.1", 0))
    first.serve(server)
    opened = []

    def connection() -> socket.socket:
        opened.append(socket.create_connection(server.getsockname(), timeout=10))
        return opened[-1]

    yield first, connection, second
    first.leave()
    for one in (server, *opened):
        one.close()
    for heartbeat in (first, second):
        for key in list(heartbeat._selector.get_map().values()):
            key.fileobj.close()
        heartbeat._selector.close()
        heartbeat._waker.close()


def test_a_failure_is_told_with_the_phase(pair):
    first, connection, second = pair
    second.join_first(connection())
    second.enter("training")
    second.leave("No space is left.")
    assert first.reason_within(10) == "Rank 1 (pid 11 on b) failed while training: No space is left."


def test_a_process_that_leaves_is_no_failure(pair):
    first, connection, second = pair
    second.join_first(connection())
    second.leave()
    assert first.reason_within(0.5) is None
    assert first.peers[1].left


def test_a_connection_that_closes_without_a_word_is_a_death(pair):
    first, connection, _ = pair
    own = connection()
    for line in ({"token": "secret", "rank": 1}, {"beat": ["saving", 3, 1.0]}):
        own.sendall(json.dumps(line).encode() + b"\n")
    own.close()
    assert "Rank 1 (pid 11 on b) is gone while saving: " in first.reason_within(10)


@pytest.mark.parametrize(
    "said", [b'{"token": "guess", "rank": 1}\n', b'{"token": "secret", "rank": 7}\n', b"GET / HTTP/1.1\n", b"3\n"]
)
def test_a_stranger_is_shown_the_door(pair, said):
    first, connection, _ = pair
    own = connection()
    own.sendall(said)
    assert own.recv(100) == b""
    assert first.reason is None
    assert first.is_alive()
