"""Counts of all tokens are stored for the rows that they were made of, and for no others."""

import shutil

import pytest

from mlx_lm_lora_prefplus.data.stored_counts import stored_counts
from mlx_lm_lora_prefplus.data.tokens.rows import TokenRows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path))
    return tmp_path / "counts"


def rows(*prompts):
    return TokenRows.of([{"prompt": list(prompt)} for prompt in prompts])


def counted(name, *tables):
    """The counts, and whether they were computed now."""
    computed = []

    def count():
        computed.append(True)
        return {"rows": sum(map(len, tables))}

    return stored_counts(name, tables, count), bool(computed)


def test_the_same_rows_are_counted_once():
    assert counted("repeated", rows([1], [2])) == ({"rows": 2}, True)
    assert counted("repeated", rows([1], [2])) == ({"rows": 2}, False)


def test_other_rows_and_other_counts_are_counted():
    counted("shared", rows([1]), rows([2]))
    assert counted("repeated", rows([1]), rows([2]))[1]
    assert counted("shared", rows([2]), rows([1]))[1]
    assert counted("shared", rows([1]), rows([3]))[1]


def test_the_file_of_another_entry_is_not_used(cache):
    counted("repeated", rows([1]))
    (file,) = cache.glob("*.json")
    counted("repeated", rows([1], [2]))
    (other,) = {*cache.glob("*.json")} - {file}
    shutil.copy(other, file)
    assert counted("repeated", rows([1])) == ({"rows": 1}, True)


def test_damaged_counts_are_made_again(cache, capsys):
    counted("repeated", rows([1]))
    (file,) = cache.glob("*.json")
    file.write_text(file.read_text().replace('"rows": 1', '"rows": 7'))
    assert counted("repeated", rows([1])) == ({"rows": 1}, True)
    assert "is damaged" in capsys.readouterr().err
