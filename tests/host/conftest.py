"""The host's module with the seam in it for one test, and trainers to put behind it."""

import dataclasses
import sys
from types import SimpleNamespace
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import originals
from mlx_lm_lora_prefplus.host.config.resolve import resolve
from mlx_lm_lora_prefplus.host.seam import command as seam
from mlx_lm_lora_prefplus.host.seam import install as activate
from mlx_lm_lora_prefplus.plugin import installed
from mlx_lm_lora_prefplus.plugin.manager import Registered, Registry
from mlx_lm_lora_prefplus.trainers import CPO, DPO, BaseTrainer

OURS = "mlx-lm-lora-prefplus 0.1.0"


@dataclasses.dataclass(frozen=True)
class FancyOptions:
    """Options of every shape, some named so that they would break abbreviations of the host."""

    loss_type: Annotated[str | list[str], Field(description="Which loss.")] = "plain"
    beta: Annotated[float, Field(gt=0, description="Scale, 100% per nat.")] = 2.0
    alpha: Annotated[float, Field(ge=0, description="A key that the host parses as a list of characters.")] = 0.5
    tau: Annotated[float, Field(gt=0, le=1, description="For loss curved.")] = 0.5
    resumes: Annotated[bool, Field(description="Would make --resume ambiguous.")] = False
    savers: Annotated[int | None, Field(ge=1, description="Would make --save ambiguous.")] = None
    sft_kind: Annotated[Literal["a", "b"], Field(description="Would make --sft ambiguous.")] = "a"
    weights: Annotated[tuple[float, ...], Field(description="A list of numbers.")] = ()


class Fancy(BaseTrainer):
    """A third party's trainer."""

    mode = "fancy"
    rows = "paired"
    options = FancyOptions
    defaults = {"learning_rate": 5e-7, "batch_size": 2}  # noqa: RUF012
    losses = {"plain": SimpleNamespace(options=("beta",)), "curved": SimpleNamespace(options=("beta", "tau"))}  # noqa: RUF012

    def loss(self, policy, batch, options, state):
        raise NotImplementedError


@pytest.fixture
def registry() -> Registry:
    return Registry(
        {
            "cpo": Registered(CPO, OURS),
            "dpo": Registered(DPO, OURS),
            "fancy": Registered(Fancy(), "fancy-prefs 2.1"),
        }
    )


@pytest.fixture
def plain_host(monkeypatch):
    """`mlx_lm_lora.train` as its authors wrote it, also where the start-up hook is installed."""
    import mlx_lm_lora.train as host

    for name, original in originals.originals_of(host).items():
        monkeypatch.setattr(host, name, original)
    monkeypatch.delattr(host, originals.MARK, raising=False)
    monkeypatch.delenv("MLX_LM_LORA_PREFPLUS", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    yield host
    if originals.is_active(host):
        delattr(host, originals.MARK)


@pytest.fixture
def host(plain_host, registry, monkeypatch):
    """The host's module with the seam in it, and the modes of `registry`."""
    monkeypatch.setattr(installed, "load_registry", lambda: registry)
    installed.registry.cache_clear()
    assert activate.activate(plain_host)
    yield plain_host
    installed.registry.cache_clear()


@pytest.fixture
def our_run(monkeypatch):
    """Stands in for `host/run/run.py`; `calls` holds (function, arguments, keyword arguments)."""
    stub = SimpleNamespace(calls=[])
    for name in ("run", "load_dataset", "train_model", "evaluate_model"):

        def function(*args, _name=name, **kwargs):
            stub.calls.append((_name, args, kwargs))
            return f"our {_name}"

        setattr(stub, name, function)
    monkeypatch.setattr(seam, "_run_module", lambda: stub)
    monkeypatch.setattr(seam, "_functions_module", lambda: stub)
    return stub


@pytest.fixture
def command_line(monkeypatch):
    """Set the words behind the program's name."""

    def set_words(*words: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["mlx_lm_lora.train", *map(str, words)])
        return sys.argv[1:]

    return set_words


@pytest.fixture
def run_config(tmp_path, host, registry):
    """Resolve what is typed over a config file, given as text or as a mapping."""

    def resolved(typed=None, file=None, mode="dpo"):
        given = {"train_mode": mode, **(typed or {})}
        if file is not None:
            path = tmp_path / "run.yaml"
            path.write_text(file if isinstance(file, str) else yaml.safe_dump(file))
            given["config"] = str(path)
        return resolve(given, registry)

    return resolved


@pytest.fixture
def refused(run_config):
    """The message with which a config is refused."""

    def message(*args, **kwargs) -> str:
        with pytest.raises(UserError) as caught:
            run_config(*args, **kwargs)
        return str(caught.value)

    return message
