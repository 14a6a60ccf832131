"""Who hangs, by what each process said last."""

import pytest

from mlx_lm_lora_prefplus.engine.ranks.liveness import Peer, hung

LIMIT = 100.0


def peer(rank: int, calls: int = 0, **known) -> Peer:
    known = {"phase": "training", "heard": 1000.0, "advanced": 1000.0, **known}
    return Peer(rank, "host", 10 + rank, calls=calls, **known)


@pytest.mark.parametrize(
    ("peers", "named"),
    [
        ([peer(0), peer(1)], None),
        # One was not heard of.
        (
            [peer(0), peer(1, heard=890.0)],
            "No answer for 100 s from Rank 1 (pid 11 on host) (last heard",
        ),
        # It answers, has made a call less than the others, and does nothing.
        ([peer(0, 8), peer(1, 7, advanced=890.0), peer(2, 8)], "The others wait for Rank 1 (pid 11 on host)"),
        # It works: it has made a call less than the others, and uses CPU time.
        ([peer(0, 8, advanced=890.0), peer(1, 7, advanced=999.0)], None),
        # Those that wait do nothing, which is right, and are ahead.
        ([peer(0, 8, advanced=500.0), peer(1, 7)], None),
        # All load for long, or wait for one another: nobody is ahead.
        ([peer(0, 7, advanced=500.0), peer(1, 7, advanced=500.0)], None),
        # Of three, only the one furthest behind can hold up the others.
        ([peer(0, 8, advanced=500.0), peer(1, 7, advanced=500.0), peer(2, 6, advanced=500.0)], "Rank 2"),
        # One that has left is neither silent nor behind.
        ([peer(0, 8), peer(1, 7, heard=500.0, advanced=500.0, left=True)], None),
        # Silent for less than the limit: it will be named as silent, or goes on.
        ([peer(0, 8), peer(1, 7, heard=940.0, advanced=890.0)], None),
    ],
)
def test_who_hangs(peers, named):
    found = hung(peers, LIMIT, 1000.0)
    assert found is None if named is None else named in found


def test_calls_phases_and_computing_count_as_advance_and_a_heartbeat_alone_does_not():
    one = peer(1, 5, cpu=2.0, heard=0.0, advanced=0.0)
    one.note("training", 5, 2.005, 50.0)
    assert (one.heard, one.advanced) == (50.0, 0.0)
    one.note("training", 5, 3.0, 60.0)
    assert one.advanced == 60.0
    one.note("training", 6, 3.0, 70.0)
    assert one.advanced == 70.0
    one.note("saving", 6, 3.0, 80.0)
    assert one.advanced == 80.0
