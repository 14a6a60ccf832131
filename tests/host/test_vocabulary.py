"""Tokens without an embedding are found before MLX reads past its end."""

from types import SimpleNamespace

import pyarrow
import pytest

from mlx_lm_lora_prefplus.data.tokens.rows import TokenRows
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.models import check_vocabulary, largest_token
from tests.conftest import VOCABULARY, tiny_llama


def rows(*tokens: int) -> TokenRows:
    columns = {"prompt": [[1], []], "chosen": [[2], []], "rejected": [[3], list(tokens)]}
    return TokenRows(pyarrow.table(columns), "digest")


def tokenizer(largest: int) -> SimpleNamespace:
    return SimpleNamespace(get_vocab=lambda: {"a": 0, "b": largest})


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_that_the_model_does_not_know(tied):
    model, larger = tiny_llama(tied=tied), tokenizer(VOCABULARY)
    check_vocabulary(model, larger, [rows(), rows(VOCABULARY - 1)])
    check_vocabulary(model, larger, [])
    with pytest.raises(UserError, match=f"up to {VOCABULARY}, but the model knows only 0 to {VOCABULARY - 1}"):
        check_vocabulary(model, larger, [rows(), rows(5, VOCABULARY)])


def test_rows_are_not_read_where_the_tokenizer_cannot_make_such_a_token(monkeypatch):
    monkeypatch.setattr("mlx_lm_lora_prefplus.host.models.largest_token", None)
    check_vocabulary(tiny_llama(), tokenizer(VOCABULARY - 1), [rows(VOCABULARY - 1)])


def test_the_largest_token():
    assert largest_token(rows(7, 9, 8)) == 9
    assert largest_token(rows()) == 3
    assert largest_token(TokenRows(rows().table[:0], "digest")) >= -1
