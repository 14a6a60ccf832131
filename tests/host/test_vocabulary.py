"""Tokens without an embedding are found before MLX reads past its end."""

import pytest
from datasets import Dataset

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.vocabulary import check_vocabulary, largest_token
from tests.conftest import VOCABULARY, tiny_llama


def rows(*tokens: int) -> Dataset:
    return Dataset.from_dict({"prompt": [[1], []], "chosen": [[2], []], "rejected": [[3], list(tokens)]})


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_that_the_model_does_not_know(tied):
    model = tiny_llama(tied=tied)
    check_vocabulary(model, [rows(), rows(VOCABULARY - 1)])
    check_vocabulary(model, [])
    with pytest.raises(UserError, match=f"up to number {VOCABULARY}, and the model knows 0 to {VOCABULARY - 1}"):
        check_vocabulary(model, [rows(), rows(5, VOCABULARY)])


def test_the_largest_token():
    assert largest_token(rows(7, 9, 8)) == 9
    assert largest_token(rows()) == 3
    assert largest_token(rows().select([])) >= -1
