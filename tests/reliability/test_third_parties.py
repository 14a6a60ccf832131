"""A trainer of another package that fails, wherever it does: the error says whose it is."""

import mlx_lm_lora.train as host
import pytest

from mlx_lm_lora_prefplus.host.seam.install import activate
from mlx_lm_lora_prefplus.plugin.installed import registry
from mlx_lm_lora_prefplus.plugin.manager import Registered
from mlx_lm_lora_prefplus.trainers import DPO

activate(host)


def theirs(failing: str):
    """DPO, but for what fails."""

    def fail(*_, **__):
        raise ZeroDivisionError("in their code")

    kind = type("Theirs", (type(DPO),), {failing: fail})
    return kind(**{**vars(DPO), "mode": "theirs"})


@pytest.mark.parametrize(
    "failing", ["needs_reference", "collate", "loss", "evaluate", "separable", "rows_of", "token_weights"]
)
@pytest.mark.slow
def test_the_error_names_the_package(go, monkeypatch, failing):
    monkeypatch.setitem(registry().modes, "theirs", Registered(theirs(failing), "their-prefs 1.0"))
    with pytest.raises(ZeroDivisionError) as caught:
        go(train_mode="theirs", batch_size=2)
    assert caught.value.__notes__ == [
        "Mode theirs is run by their-prefs 1.0. If the error is in its code, report it to its authors."
    ]
