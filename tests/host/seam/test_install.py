"""The gate: everything fits, or nothing is set."""

import importlib.metadata
import inspect
import os

import pytest

from mlx_lm_lora_prefplus.host import originals
from mlx_lm_lora_prefplus.host.seam import install as activate

NAMES = tuple(originals.WRAPPED["mlx_lm_lora.train"])


def names_of(host):
    return {name: getattr(host, name) for name in NAMES}


def refused(host, capsys) -> str:
    """Activation is refused with one line, and every name means what it meant."""
    before = dict(vars(host))
    assert activate.activate(host) is False
    assert dict(vars(host)) == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_everything_that_is_wrapped_is_set_once(plain_host, capsys):
    before = names_of(plain_host)
    assert activate.activate(plain_host)
    after = names_of(plain_host)
    assert all(after[name] is not before[name] for name in NAMES)
    assert activate.activate(plain_host)
    assert names_of(plain_host) == after
    assert dict(originals.originals_of(plain_host)) == before
    assert capsys.readouterr() == ("", "")


def test_mlx_on_cuda_does_not_stop_for_many_shapes(plain_host, monkeypatch):
    """The host's command, too, sets mlx's variables. (It asks for no backend, because it runs.)"""
    monkeypatch.delenv("MLX_ENABLE_CACHE_THRASHING_CHECK", raising=False)
    assert activate.activate(plain_host)
    assert os.environ["MLX_ENABLE_CACHE_THRASHING_CHECK"] == "0"


def test_the_wrappers_look_like_the_originals(plain_host):
    before = names_of(plain_host)
    activate.activate(plain_host)
    for name, original in before.items():
        wrapper = getattr(plain_host, name)
        assert (wrapper.__name__, wrapper.__doc__) == (name, original.__doc__)
        assert inspect.signature(wrapper) == inspect.signature(original)
        assert wrapper.__wrapped__ is original


def test_the_hosts_defaults_stay_as_they_are(plain_host):
    before = dict(plain_host.CONFIG_DEFAULTS)
    activate.activate(plain_host)
    assert before == plain_host.CONFIG_DEFAULTS


@pytest.mark.parametrize("version", ["5.9.9", "6.0.0", "6.0.0rc1", "4.0", "unknown", ""])
def test_an_unsupported_version(plain_host, monkeypatch, capsys, version):
    monkeypatch.setattr(originals, "version", lambda name: version)
    line = refused(plain_host, capsys)
    assert ">=5.10,<6" in line and (version or "an unknown version") in line


@pytest.mark.parametrize("version", ["5.10", "5.10.2", "5.11.0.dev1", "5.99"])
def test_supported_versions(version):
    assert originals.version_misfit(version) is None


def test_a_copied_host_says_its_version_itself(plain_host, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(originals, "version", missing)
    assert originals.host_version() == importlib.metadata.version("mlx-lm-lora")


@pytest.mark.parametrize("name", NAMES)
def test_another_signature(plain_host, monkeypatch, capsys, name):
    monkeypatch.setattr(plain_host, name, lambda something, new: None)
    assert f"mlx_lm_lora.train.{name} takes (something, new)" in refused(plain_host, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_gone(plain_host, monkeypatch, capsys, name):
    monkeypatch.delattr(plain_host, name)
    assert f"no function {name}" in refused(plain_host, capsys)


@pytest.mark.parametrize("name", originals.USED["mlx_lm_lora.train"])
def test_a_helper_that_is_gone(plain_host, monkeypatch, capsys, name):
    monkeypatch.delattr(plain_host, name)
    assert name in refused(plain_host, capsys)


def test_it_stands_aside_for_native_discovery(plain_host, monkeypatch, capsys):
    monkeypatch.setattr(plain_host, "TRAINER_PLUGIN_API", 1, raising=False)
    before = names_of(plain_host)
    assert activate.activate(plain_host) is False
    assert names_of(plain_host) == before
    assert capsys.readouterr() == ("", "")
