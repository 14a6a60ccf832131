"""Losses that another package adds to a mode of ours, as docs/add-a-loss.md begins."""

import math
import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Annotated

import mlx_lm_lora.train as host
import pytest
from pydantic import Field

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.seam.install import activate
from mlx_lm_lora_prefplus.host.tools.describe import describe
from mlx_lm_lora_prefplus.losses import Loss, advice
from mlx_lm_lora_prefplus.plugin import hookimpl, manager
from mlx_lm_lora_prefplus.plugin.installed import registry
from mlx_lm_lora_prefplus.plugin.manager import load_registry
from tests.paths import DOCS

activate(host)

PAGE = DOCS / "add-a-loss.md"


def page_block() -> str:
    """The first code block of the page."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert block
    return block[1]


def page_module() -> SimpleNamespace:
    """The first code block of the page, run as a module."""
    names: dict = {}
    exec(page_block(), names)
    return SimpleNamespace(**names)


@dataclass(frozen=True)
class Keys:
    """A key that mode dpo does not have."""

    steepness: Annotated[float, Field(gt=0, description="steep: the factor.")] = 2.0


def steep(pairs, *, beta, steepness):
    """steepness·(1 − βΔ): a line."""
    return steepness * (1 - beta * pairs.delta)


def plugin(losses):
    class Plugin:
        @hookimpl
        def mlx_lm_lora_register_losses(self):
            return losses

    return Plugin()


@pytest.fixture
def installed(monkeypatch):
    """The registry where a package `curves 1.0` brings a plugin."""

    def load(brought):
        entry = SimpleNamespace(name="curves", value="curves", dist=SimpleNamespace(name="curves", version="1.0"))
        entry.load = lambda: brought
        monkeypatch.setattr(manager, "entry_points", lambda group: [*entry_points(group=group), entry])
        made = load_registry()
        monkeypatch.setitem(registry().modes, "dpo", made["dpo"])
        return made

    return load


def test_the_ten_lines_of_the_page_train(installed, go):
    assert len([line for line in page_block().splitlines() if line]) <= 10
    found = installed(page_module())
    assert found.broken == {}
    assert found["dpo"].provider.endswith("with cubic of curves 1.0")
    out, seen = go(loss_type="cubic")
    assert "Objective: cubic (beta 0.1" in out
    assert seen.val[0]["val_loss"] == pytest.approx(1.0, rel=1e-6), "(1 − 0)³ where the policy is its reference"
    assert math.isfinite(seen.train[-1]["train_loss"])


def test_a_key_of_its_own_is_a_key_of_the_mode(installed, go):
    found = installed(plugin({"dpo": {"steep": Loss(steep, ("beta", "steepness"), keys=Keys)}}))
    assert found.broken == {}
    trainer = found["dpo"].trainer
    options = trainer.options(loss_type="steep", steepness=3.0, ld_alpha=0.5)
    assert options.steepness == 3.0 and trainer.reference_key(options)["ld_alpha"] == 0.5
    _, seen = go(loss_type="steep", steepness=3.0)
    assert seen.val[0]["val_loss"] == pytest.approx(3.0, rel=1e-6)
    with pytest.raises(UserError, match="steepness"):
        go(loss_type="steep", steepness=-1.0)


def test_what_it_cannot_work_with_is_refused_and_warned_of_as_ours_is(installed, go):
    def check(options):
        return "steepness: more than 8 was given, and steep takes 8 at most" if options.steepness > 8 else None

    def advise(options):
        return f"steepness {options.steepness:g} is large: 1 to 4 are usual." if options.steepness > 4 else None

    row = Loss(steep, ("beta", "steepness"), keys=Keys, defaults={"beta": 0.7}, check=check, advice=(advise,))
    options = installed(plugin({"dpo": {"steep": row}}))["dpo"].trainer.options
    assert options(loss_type="steep").beta == 0.7
    with pytest.raises(ValueError, match="takes 8 at most"):
        options(loss_type=["sigmoid", "steep"], steepness=9.0)
    assert options(loss_type="sigmoid", steepness=9.0).steepness == 9.0, "a rule holds where its loss is chosen"
    with pytest.raises(UserError, match="takes 8 at most"):
        go(loss_type="steep", steepness=9.0)
    assert advice(options(loss_type="steep", steepness=5.0)) == ["steepness 5 is large: 1 to 4 are usual."]
    out, _ = go(loss_type="steep", steepness=5.0)
    assert "1 to 4 are usual" in out


def test_it_is_listed_beside_ours(installed):
    (row,) = describe(installed(page_module()), "cubic")
    assert row.mode == "dpo" and row.formula == "max(0, 1 − βΔ)³"


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ({"dpo": {"sigmoid": Loss(steep)}}, "mode dpo already has a loss sigmoid. Choose another name"),
        ({"nodpo": {"steep": Loss(steep)}}, "there is no such mode. Existing modes are cpo, dpo"),
        ({"dpo": {"steep": steep}}, "not a mlx_lm_lora_prefplus.losses.Loss"),
    ],
)
def test_what_cannot_be_added_is_named_and_left_out(installed, losses, reason):
    found = installed(plugin(losses))
    assert reason in found.broken["curves 1.0"]
    assert "sigmoid" in found["dpo"].trainer.losses and "steep" not in found["dpo"].trainer.losses
