"""Tests of the host's functions run in a folder of their own."""

import pytest

from mlx_lm_lora_prefplus.host.dropin.settings import VARIABLE


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
