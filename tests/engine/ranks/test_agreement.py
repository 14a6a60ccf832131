"""What is said of processes that were given different things."""

from mlx_lm_lora_prefplus.engine.ranks.agreement import described, differences, failures
from mlx_lm_lora_prefplus.errors import UserError


def test_nothing_is_said_where_all_is_the_same():
    assert differences([{"seed": 0, "iters": 4}] * 3) is None
    assert failures([None, None]) is None


def test_each_value_is_named_with_its_ranks_and_a_missing_one_too():
    told = differences([{"seed": 0, "beta": 0.1}, {"seed": 1, "beta": 0.1, "new": True}, {"seed": 0, "beta": 0.1}])
    assert told.startswith(
        "The 3 processes were started differently. seed: 0 in ranks 0, 2, 1 in rank 1; "
        "new: nothing in ranks 0, 2, True in rank 1. "
    )
    assert "beta" not in told


def test_long_values_and_many_ranks_are_cut():
    told = differences([{"hosts": "x" * 500}, *[{"hosts": "y"}] * 63])
    assert len(told) < 600
    assert "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 55 more" in told


def test_errors_become_sentences_of_one_line():
    assert described(UserError("beta: too\nsmall")) == "beta: too small."
    assert described(ZeroDivisionError("division by zero")) == "ZeroDivisionError: division by zero."
    assert "SIGINT" in described(KeyboardInterrupt())
    assert failures([None, "No rows."]) == "Rank 1 failed at its start: No rows."
