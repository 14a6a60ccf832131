"""The functions that programs call by themselves own the folder that they save in."""

import mlx.optimizers as optim
import pytest
from mlx_lm_lora.trainer.datasets import CacheDataset

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import dropin
from mlx_lm_lora_prefplus.host.seam import functions
from mlx_lm_lora_prefplus.storage.owner import LOCK, owned
from tests.conftest import random_rows, tiny_llama, with_lora, write_pairs
from tests.host.dropin.calls import Items, host_items
from tests.host.seam.test_functions import arguments, loaded

REFUSED = "is using .*adapters, and two runs in one folder"


@pytest.mark.parametrize("mode", ["dpo", "cpo", "orpo"])
def test_a_folder_that_another_run_owns_is_refused(mode, tmp_path):
    kind = {"dpo": dropin.DPOTrainingArgs, "cpo": dropin.CPOTrainingArgs, "orpo": dropin.ORPOTrainingArgs}[mode]
    model = with_lora(tiny_llama(), moved=False)
    given = {
        "model": model,
        "optimizer": optim.SGD(0.1),
        "train_dataset": CacheDataset(Items(host_items(random_rows(6)))),
        "args": kind(iters=1, batch_size=6, adapter_file=str(tmp_path / "adapters" / "adapters.safetensors")),
        **({"ref_model": None} if mode == "dpo" else {}),
    }
    train = getattr(dropin, f"train_{mode}")
    with owned(tmp_path / "adapters", print):
        with pytest.raises(UserError, match=REFUSED):
            train(**given)
        assert [path.name for path in (tmp_path / "adapters").iterdir()] == [LOCK]
    train(**given)
    assert (tmp_path / "adapters" / "adapters.safetensors").is_file()
    assert not (tmp_path / "adapters" / LOCK).exists()


def test_train_model_too(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "data", train=8, test=6)
    args = arguments(model_folder, train_mode="dpo", iters=1)
    model, tokenizer = loaded(args)
    train_set = functions.load_dataset(args, tokenizer)[0]
    file = tmp_path / "adapters" / "adapters.safetensors"
    with owned(file.parent, print), pytest.raises(UserError, match=REFUSED):
        functions.train_model(args, model, tokenizer, file, train_set=train_set)
    assert not file.exists()
    functions.train_model(args, model, tokenizer, file, train_set=train_set)
    assert file.is_file() and not (file.parent / LOCK).exists()
