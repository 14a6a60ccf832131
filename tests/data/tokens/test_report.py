"""How rows and the examples that come of them are counted for people."""

import pytest

from mlx_lm_lora_prefplus.data.tokens.report import counted


@pytest.mark.parametrize(
    ("used", "read", "dropped", "said"),
    [
        (10, 10, 0, "10 of 10"),
        (9, 10, 1, "9 of 10"),
        (480, 240, 0, "480 examples out of 240 rows"),
        (478, 240, 1, "478 examples out of 240 rows"),
        (4, 16, 0, "4 examples out of 16 rows"),
    ],
)
def test_rows_and_examples_are_not_mixed(used, read, dropped, said):
    assert counted(used, read, dropped) == said
