"""Micro-batches from any place on are those of a run from the start."""

import pytest

from mlx_lm_lora_prefplus.engine.train.inputs import BatchStream, DataPosition


def epoch(number: int, first: int):
    """Epochs of 3, 2, 3, 2 … batches."""
    return iter([f"{number}.{i}" for i in range(first, 3 - number % 2)])


def test_epoch_after_epoch():
    feed = BatchStream(epoch, DataPosition(0, 0))
    assert feed.take(4) == ["0.0", "0.1", "0.2", "1.0"]
    assert feed.place == (1, 1)
    assert feed.take(1) == ["1.1"] and feed.place == (1, 2)


@pytest.mark.parametrize("before", range(1, 9))
def test_from_any_place(before):
    whole = BatchStream(epoch, DataPosition(0, 0))
    whole.take(before)
    rest = BatchStream(epoch, whole.place)
    assert rest.take(6) == whole.take(6) and rest.place == whole.place
