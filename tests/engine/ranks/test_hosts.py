"""Host files that cannot work."""

import json

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.engine.ranks.hosts import connect, rank_timeout, read_hosts
from mlx_lm_lora_prefplus.errors import UserError

TWO = [["127.0.0.1:5000"], ["127.0.0.1:5001"]]


def given(monkeypatch, tmp_path, text, rank="0"):
    file = tmp_path / "hosts.json"
    file.write_text(text)
    monkeypatch.setenv("MLX_HOSTFILE", str(file))
    if rank is None:
        monkeypatch.delenv("MLX_RANK", raising=False)
    else:
        monkeypatch.setenv("MLX_RANK", rank)


def test_a_host_file_is_a_list_of_addresses_for_each_rank(monkeypatch, tmp_path):
    given(monkeypatch, tmp_path, json.dumps(TWO))
    assert read_hosts() == TWO


@pytest.mark.parametrize(
    ("text", "rank", "told"),
    [
        ("{", "0", "is not JSON"),
        ('[["127.0.0.1"]]', "0", 'a list with one list of "IP:port"'),
        ('[["127.0.0.1:http"]]', "0", 'a list with one list of "IP:port"'),
        ('[{"ssh": "a", "ips": ["127.0.0.1"]}]', "0", "are for mlx.launch --hostfile"),
        (json.dumps(TWO), "2", "MLX_RANK is '2', and"),
        (json.dumps(TWO), "first", "MLX_RANK is 'first', and"),
        (json.dumps(TWO), None, "MLX_RANK is not set, and"),
    ],
)
def test_a_wrong_one_is_explained(monkeypatch, tmp_path, text, rank, told):
    given(monkeypatch, tmp_path, text, rank)
    with pytest.raises(UserError, match="(?s).*") as error:
        connect()
    assert told in str(error.value)


def test_one_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="none.json cannot be read"):
        connect()


def test_an_empty_one_as_mlx_launch_writes_it_for_one_process(monkeypatch, tmp_path):
    given(monkeypatch, tmp_path, "\n")
    assert read_hosts() == []
    assert connect().size() == 1


@pytest.mark.skipif(not mx.distributed.is_available(), reason="this build of MLX has no distributed backend")
def test_an_address_of_another_machine(monkeypatch, tmp_path):
    given(monkeypatch, tmp_path, '[["192.0.2.1:5000"], ["127.0.0.1:5001"]]')
    with pytest.raises(UserError, match="Rank 0 of 2 cannot listen at 192.0.2.1:5000: "):
        connect()


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e12"])
def test_a_timeout_that_is_no_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_RANK_TIMEOUT", text)
    with pytest.raises(UserError, match="is not a number of seconds"):
        rank_timeout()
