"""What is odd about a run is said by `check`, by the run, in `run.json` and so in the report, alike."""

import json
import shutil
from pathlib import Path

import mlx.optimizers as optim
import mlx_lm_lora.train as host
import pytest
from mlx_lm_lora.trainer.dpo_trainer import DPOTrainingArgs

from mlx_lm_lora_prefplus.host import dropin
from mlx_lm_lora_prefplus.host.seam.install import activate
from mlx_lm_lora_prefplus.preview.report import build_report
from mlx_lm_lora_prefplus.report.page import page
from mlx_lm_lora_prefplus.report.results.runs import read_runs
from tests.conftest import tiny_llama, with_lora

WORDS = [f"w{i}" for i in range(10)]


def write(folder: Path, split: str, count: int, **more) -> None:
    """Pairs whose chosen side is the longer one."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"prompt": f"w{i} w{i // 10}", "chosen": " ".join(WORDS), "rejected": f"w{i % 9} w2", **more}
        for i in range(count)
    ]
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def told(model_folder, tmp_path, monkeypatch, capsys):
    """The findings of a run with some settings: `check` says the same as the run, which keeps them."""
    monkeypatch.chdir(tmp_path)
    activate(host)

    def findings(**changes) -> str:
        config = {"model": str(model_folder), "data": "data", "train_mode": "dpo", "iters": 1, "fuse": False}
        config |= {"train": True, "adapter_path": "run", "num_layers": 2, **changes}
        Path("run.yaml").write_text(json.dumps(config))
        checked = build_report(["run.yaml"], measured=False)
        assert checked["problems"] == []
        capsys.readouterr()
        host.main(config)
        printed = capsys.readouterr().out
        kept = json.loads(Path("run/run.json").read_text())["warnings"]
        assert set(checked["warnings"]) == set(kept)
        assert all(text in printed for text in kept)
        return "\n".join(kept)

    return findings


def test_rows_that_are_cut_one_sided_and_without_validation(told, tmp_path):
    write(tmp_path / "data", "train", 30, videos=["a.mp4"], source="web")
    text = told(max_seq_length=14)
    assert "train: 30 of 30 rows are truncated to max_seq_length" in text
    assert "train: chosen is longer than rejected in 100% of the pairs" in text
    assert "There is no validation (no valid rows)" in text
    assert "train: column videos is not used, because the model sees only text" in text
    assert "train: these columns are not used: source." in text


def test_a_tokenizer_without_an_end_is_named(told, tmp_path, model_folder):
    write(tmp_path / "data", "train", 4)
    write(tmp_path / "data", "valid", 4)
    shutil.copytree(model_folder, tmp_path / "endless")
    file = tmp_path / "endless" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": None}))
    assert "The tokenizer has no EOS token" in told(model=str(tmp_path / "endless"))


@pytest.mark.parametrize("fuse", [True, False])
def test_a_fused_model_loses_its_vision_tower(told, tmp_path, model_folder, fuse):
    for split in ("train", "valid"):
        write(tmp_path / "data", split, 4)
    shutil.copytree(model_folder, tmp_path / "seeing")
    file = tmp_path / "seeing" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vision_config": {"depth": 1}}))
    text = told(model=str(tmp_path / "seeing"), fuse=fuse)
    assert ("the fused model can no longer read pictures" in text) is fuse


def test_settings_that_have_no_effect(told, tmp_path, model_folder):
    context = json.loads((model_folder / "config.json").read_text()).get("max_position_embeddings", 32768)
    for split in ("train", "valid"):
        write(tmp_path / "data", split, 3)
    text = told(epochs=2, val_batches=0, max_seq_length=context + 1)
    assert "epochs: 2 has no effect if iters is set (1)" in text
    assert "There is no validation (val_batches: 0)" in text
    assert f"max_seq_length {context + 1} exceeds the model's context of {context} tokens, and no row is longer" in text
    assert "not used" not in text


@pytest.mark.slow
def test_all_weights_of_a_quantised_model(told, tmp_path):
    for split in ("train", "valid"):
        write(tmp_path / "data", split, 3)
    text = told(train_type="full", load_in_4bits=True)
    assert "train_type: full on a quantised model trains only unquantised weights" in text


def test_a_sound_run_is_told_nothing(told, tmp_path):
    for split, first in (("train", 0), ("valid", 20)):
        rows = [{"prompt": f"w{i} w3 {split}", "chosen": "w1 w2", "rejected": "w4 w5"} for i in range(first, first + 3)]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert told(max_seq_length=64) == ""


def test_the_functions_in_the_hosts_place_say_the_same(tmp_path, capsys):
    """They tell it, keep it in run.json, and the report shows it."""
    items = [{"chosen": [1, 2, i + 3, *range(4, 12)], "rejected": [1, 2, i + 3, 5]} for i in range(25)]
    args = DPOTrainingArgs(iters=1, batch_size=2, adapter_file=str(tmp_path / "run" / "adapters.safetensors"))
    (tmp_path / "run").mkdir()
    dropin.train_dpo(with_lora(tiny_llama()), None, optim.SGD(0.1), items, None, args)
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["warnings"]
    assert any(text.startswith("train: chosen is longer than rejected in 100%") for text in kept)
    assert any(text.startswith("There is no validation (no valid rows)") for text in kept)
    assert all(text.replace("loss", "objective") in printed for text in kept)
    assert "chosen is longer than rejected in 100%" in page(read_runs([tmp_path / "run"]))
