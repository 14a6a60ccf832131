"""Three rounds on the quick start's world, from prompts alone."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.quickstart import world
from mlx_lm_lora_prefplus.quickstart.model import make_model
from tests.pairs.conftest import write_prompts

PRETRAINING = 60
"""Steps: enough for the manner of the answers, not for the facts."""


@pytest.mark.slow
def test_three_rounds_from_prompts_raise_the_score(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model(Path("model"), steps=PRETRAINING)
    Path("prompts").mkdir()
    rows = world.preferences(0)
    for split in ("train", "test"):
        write_prompts(Path("prompts") / f"{split}.jsonl", *(row["prompt"] for row in rows[split]))
    Path("polite.py").write_text(
        "from mlx_lm_lora_prefplus.quickstart.world import is_courteous\n\n\n"
        "def courteous(prompt, completion):\n    return is_courteous(completion)\n"
    )
    config = {
        **{"model": "model", "data": "prompts", "adapter_path": "run", "train_mode": "dpo", "sft_weight": 2.0},
        **{"learning_rate": 1e-4, "iters": 8, "batch_size": 10, "max_seq_length": 64, "rounds": 3},
        "pairs": {"num_generations": 3, "max_tokens": 16, "prompts": 30, "reward": "polite.py:courteous"},
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(cli.app, ["rounds", "run.yaml"])
    assert result.exit_code == 0, result.output
    record = json.loads(Path("run/rounds.json").read_text())
    assert len(record["rounds"]) == 3 and record["held_out"] == "test"
    first, *others = record["figures"]
    assert first["score"]["high"] < 0.5 < others[-1]["score"]["low"], record["figures"]
    assert others[-1]["gain_in_all"]["low"] > 0.3
