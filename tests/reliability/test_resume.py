"""`resume`: what goes on, what is refused by name, what is left untouched."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import get_args

import mlx.core as mx
import mlx_lm
import pytest

from mlx_lm_lora_prefplus.engine.files.run_state import newest_state
from mlx_lm_lora_prefplus.engine.train import loop
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.config.command_line import settings_of
from mlx_lm_lora_prefplus.host.run import references, resume
from mlx_lm_lora_prefplus.host.run.resume import find_state
from mlx_lm_lora_prefplus.settings import Optimizer
from tests.conftest import write_pairs


def content(folder="adapters") -> dict[str, tuple[bytes, int]]:
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(folder).iterdir() if path.is_file()
    }


def stopped_after(iteration: int, go, monkeypatch, **changes) -> None:
    """A run that dies behind a save, before the next step."""

    class Dead(Exception):
        pass

    real = loop.Loop.optimizer_step

    def step(self, bar):
        if self.state.counters.iteration >= iteration:
            raise Dead
        real(self, bar)

    with monkeypatch.context() as patch, pytest.raises(Dead):
        patch.setattr(loop.Loop, "optimizer_step", step)
        go(**changes)


def test_nothing_there_starts_afresh_and_says_so(go):
    assert "Nothing to resume in adapters: starting from the beginning" in go(resume=True).out
    assert Path("adapters/state-0000006.safetensors").is_file()


def test_resume_in_a_file_says_nothing_at_the_first_start(tmp_path, capsys):
    """`new` and `rounds` write it, so that the same command goes on."""
    (tmp_path / "run.yaml").write_text("train_mode: dpo\nresume: true\n")
    for words, said in (((), False), (("--resume",), True)):
        resolved = settings_of([str(tmp_path / "run.yaml"), *words])
        assert find_state(resolved, tmp_path / "adapters/adapters.safetensors") is None
        assert ("Nothing to resume" in capsys.readouterr().out) == said
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters/state-0000006.safetensors").write_bytes(b"damaged")
    find_state(settings_of([str(tmp_path / "run.yaml")]), tmp_path / "adapters/adapters.safetensors")
    assert "starting from the beginning" in capsys.readouterr().out


def test_a_finished_run_changes_no_byte(go):
    go()
    before = content()
    ended = go(resume=True)
    assert "is finished. To train longer" in ended.out and not ended.log
    assert content() == before


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_iterations(go):
    go(adapter_path="long", iters=8)
    go(iters=6)
    ended = go(iters=8, resume=True)
    assert "Resuming after iteration 6 of 6" in ended.out
    assert [line for line in ended.log if "loss" in line and "Val" not in line][-1].startswith("Iter 8")
    assert Path("adapters/adapters.safetensors").read_bytes() == Path("long/adapters.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        *(("lora", optimizer) for optimizer in get_args(Optimizer)),
        *((kind, optimizer) for kind in ("dora", "full") for optimizer in ("adam", "muon")),
    ],
)
def test_every_kind_of_training_goes_on_to_the_same_bytes(go, monkeypatch, kind, optimizer):
    changes = {"train_type": kind, "optimizer": optimizer, "max_grad_norm": 0.5}
    go(adapter_path="alone", **changes)
    stopped_after(4, go, monkeypatch, **changes)
    go(resume=True, **changes)
    assert Path("adapters/adapters.safetensors").read_bytes() == Path("alone/adapters.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"load_in_4bits": True},
        {"qat_enable": True, "qat_bits": 4, "qat_start_step": 3, "qat_interval": 2},
        {"epochs": 2, "iters": None},
        {"token_budget": 64},
        {"sft_weight": 0.5, "loss_type": "ipo"},
        {"grad_checkpoint": True},
        {"optimizer_bits": 8, "lora_parameters": {"rank": 64, "dropout": 0.0, "scale": 10.0}},
        {"optimizer_bits": 8, "train_type": "full", "optimizer": "adamw", "gradient_accumulation_steps": 2},
        {"num_layers": 2},
        {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5},
        {"bema_for_ref_model": True, "bema_update_freq": 2, "bema_update_after": 1},
    ],
    ids=str,
)
def test_with_these_settings_too(go, monkeypatch, changes):
    go(adapter_path="alone", **changes)
    stopped_after(2, go, monkeypatch, **changes)
    assert "rows from the cache" in go(resume=True, **changes).out
    assert Path("adapters/adapters.safetensors").read_bytes() == Path("alone/adapters.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "iterations", "passed"), [(1, 2, {4, 6}), (1, 6, {10}), (2, 2, {10})])
def test_a_cache_that_was_cleared_changes_no_byte(go, monkeypatch, tmp_path, layers, iterations, passed):
    """What the steps had computed is passed over again, in the batches of then: later ones pad otherwise."""
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "own"))
    changes = {"num_layers": layers, "epochs": 3, "iters": None, "gradient_accumulation_steps": 1}
    go(adapter_path="alone", **changes)
    stopped_after(iterations, go, monkeypatch, **changes)
    shutil.rmtree(tmp_path / "own")
    real, seen = references.reference_logps, {}

    def noted(policy, batches, rows, title, **more):
        seen[title] = more["missing"]
        return real(policy, batches, rows, title, **more)

    monkeypatch.setattr(references, "reference_logps", noted)
    go(resume=True, **changes)
    assert seen["Reference, train"] in passed
    assert Path("adapters/adapters.safetensors").read_bytes() == Path("alone/adapters.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 2e-3}, "learning_rate was 0.001 and is 0.002"),
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"batch_size": 5}, "batch_size was 3 and is 5"),
        ({"beta": 0.2}, "beta was 0.1 and is 0.2"),
        ({"loss_type": "hinge"}, "loss_type was sigmoid and is hinge"),
        ({"train_mode": "cpo"}, "has other settings or data: train_mode was dpo and is cpo. Restore those"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1 and is 2"),
        ({"optimizer": "adamw"}, "optimizer was adam and is adamw"),
        ({"optimizer_bits": 8}, "optimizer_bits was 32 and is 8"),
        ({"lr_schedule": None}, "lr_schedule was .* and is None"),
        ({"max_seq_length": 9}, "train rows changed; valid rows changed; .*max_seq_length was 2048 and is 9"),
        ({"load_in_4bits": True}, "weights of the model changed"),
    ],
    ids=str,
)
def test_another_run_is_refused_and_what_changed_is_named(go, changes, named):
    go()
    before = content()
    with pytest.raises(UserError, match=f"resume: the run saved in adapters at iteration 6 .*{named}") as caught:
        go(resume=True, iters=8, **changes)
    assert caught.match("--resume force")
    assert content() == before


@pytest.mark.slow
def test_a_version_that_plans_other_batches_is_refused(go, monkeypatch):
    """Otherwise some rows of the epoch would be used twice, and others never."""
    go()
    monkeypatch.setattr(resume, "ORDER", resume.ORDER + 1)
    with pytest.raises(UserError, match="data: order of batches in this version of mlx-lm-lora-prefplus changed"):
        go(resume=True, iters=8)


@pytest.mark.slow
def test_the_same_reference_may_be_written_in_another_way(go, tmp_path):
    go(adapter_path="sft", seed=5)
    go(reference_model_path="sft", iters=4)
    assert "Resuming after iteration 4" in go(reference_model_path=str(tmp_path / "sft"), iters=6, resume=True).out
    with pytest.raises(UserError, match="reference_model_path was .*sft and is adapters"):
        go(reference_model_path="adapters", iters=8, resume=True)


@pytest.mark.slow
def test_a_reference_whose_files_were_replaced_is_refused(go):
    """The path is the same; the adapters behind it are others."""
    go(adapter_path="sft", seed=5)
    go(reference_model_path="sft", iters=4)
    record = json.loads(Path("adapters/run.json").read_text())
    go(adapter_path="sft", seed=6)
    before = content()
    with pytest.raises(
        UserError, match=r"has other settings or data: weights of the reference changed\. Restore those.*--resume force"
    ):
        go(reference_model_path="sft", iters=6, resume=True)
    assert content() == before
    forced = go(reference_model_path="sft", iters=6, resume="force").out
    assert "resume: force resumes although weights of the reference changed" in forced
    other = json.loads(Path("adapters/run.json").read_text())
    assert len({one["reference_digest"] for one in (record, other)} - {None}) == 2


@pytest.mark.slow
def test_other_rows_and_another_template_are_named(go, world):
    go()
    write_pairs(world.folder / "data", seed=7, train=10)
    with pytest.raises(UserError, match="iteration 6 has other settings or data: train rows changed. Restore those"):
        go(resume=True, iters=8)
    template = world.model / "chat_template.jinja"
    file = template if template.is_file() else world.model / "tokenizer_config.json"
    text = file.read_text()
    file.write_text(text.replace("<{{ m['role'] }}> {{", "<{{ m['role'] }}>{{"))
    try:
        with pytest.raises(UserError, match="chat template changed"):
            go(resume=True, iters=8)
    finally:
        file.write_text(text)


@pytest.mark.slow
def test_what_decides_nothing_may_change(go):
    go()
    changes = {"steps_per_report": 1, "steps_per_eval": 2, "save_every": 1, "keep_last": 1, "grad_checkpoint": True}
    go(resume=True, iters=8, **changes)
    assert len(list(Path("adapters").glob("state-*"))) == 1


def test_force_goes_on_and_says_so(go):
    go()
    ended = go(resume="force", iters=8, learning_rate=1e-5, lr_schedule=None, batch_size=5)
    assert "resume: force resumes although learning_rate was 0.001 and is 1e-05" in ended.out
    assert "lr 1.000e-05" in ended.out
    assert newest_state(Path("adapters"))[0].iteration == 8


def test_force_cannot_make_other_shapes_fit(go):
    go()
    before = content()
    with pytest.raises(UserError, match="resume: the saved weights does not fit this run"):
        go(resume="force", iters=8, lora_parameters={"rank": 8})
    assert content() == before


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_a_damaged_state_is_told_and_the_one_before_it_used(go, monkeypatch, damage):
    go(adapter_path="alone")
    stopped_after(4, go, monkeypatch)
    file = Path("adapters/state-0000004.safetensors")
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
    file.write_bytes({"torn": whole[:middle], "flipped": flipped, "empty": b""}[damage])
    ended = go(resume=True)
    assert "state-0000004.safetensors is damaged" in ended.out and "Resuming after iteration 2 of 6" in ended.out
    assert Path("adapters/adapters.safetensors").read_bytes() == Path("alone/adapters.safetensors").read_bytes()


def test_a_fresh_start_in_the_folder_of_another_run_says_so(go):
    go()
    ended = go(iters=3)
    assert "adapters contains the state of a run at iteration 6. This run starts from the beginning" in ended.out
    assert "are moved to adapters/previous-1; nothing is deleted" in ended.out
    assert [path.name for path in Path("adapters").glob("state-*")] == [f"state-000000{n}.safetensors" for n in (2, 3)]


@pytest.mark.slow
def test_resume_adapter_file_counts_at_the_first_start_alone(go, monkeypatch):
    go(adapter_path="first")
    changes = {"resume_adapter_file": "first/adapters.safetensors"}
    go(adapter_path="alone", **changes)
    stopped_after(4, go, monkeypatch, **changes)
    go(resume=True, **changes)
    assert Path("adapters/adapters.safetensors").read_bytes() == Path("alone/adapters.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_that_died_while_fusing_is_fused(go, world, monkeypatch):
    def dead(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mlx_lm_lora_prefplus.host.output.fuse.fuse", dead)
        go(fuse=True)
    assert not Path("adapters/config.json").exists()
    go(fuse=True, resume=True)
    assert Path("adapters/config.json").is_file()
    before = content()
    go(fuse=True, resume=True)
    assert content() == before
    mlx_lm.load("adapters")


def test_mlx_lm_loads_the_adapters_and_the_best(go, world):
    ended = go(steps_per_eval=2, save_best="rewards/margins")
    assert "Best rewards/margins (higher is better) so far" in ended.out and "kept in adapters/best" in ended.out
    tokens = mx.array([[6, 7, 8]])
    base, _ = mlx_lm.load(str(world.model))
    for folder in ("adapters", "adapters/best"):
        tuned, _ = mlx_lm.load(str(world.model), adapter_path=folder)
        assert not mx.allclose(base(tokens), tuned(tokens), atol=1e-5)


@pytest.mark.slow
def test_early_stopping_ends_and_stays_ended(go, monkeypatch):
    values = iter([0.5, *[0.4] * 20])
    monkeypatch.setattr(
        "mlx_lm_lora_prefplus.trainers.DPO.__class__.evaluate",
        lambda *_, **__: {"loss": 1.0, "rewards/accuracies": next(values)},
    )
    changes = {"iters": 30, "steps_per_eval": 2, "early_stopping_patience": 2}
    ended = go(early_stopping_metric="rewards/accuracies", **changes)
    assert "Stopped after iteration 4: 2 validations without a better rewards/accuracies" in ended.out
    before = content()
    assert "is finished. To train longer" in go(early_stopping_metric="rewards/accuracies", resume=True, **changes).out
    assert content() == before
    more = {**changes, "early_stopping_patience": 4}
    assert "Stopped after iteration 8" in go(early_stopping_metric="rewards/accuracies", resume=True, **more).out


@pytest.mark.parametrize("key", ["save_best", "early_stopping_metric"])
def test_a_metric_that_is_not_there_is_refused(go, key):
    """Before the files of the last run are moved."""
    go(iters=1)
    before = content()
    with pytest.raises(
        UserError, match=f"{key}: validation has no metric 'accuracy'. Choose from: .*rewards/accuracies"
    ):
        go(**{key: "accuracy"})
    assert content() == before
    with pytest.raises(UserError, match=f"{key}: there are no validations"):
        go(**{key: "loss"}, val_batches=0)


def test_saving_by_the_clock(go):
    ended = go(save_every=1000, save_every_minutes=1e-9, keep_last=3)
    assert re.findall(r"^Iter (\d+): Saved", ended.out, re.M) == [str(i) for i in range(1, 7)]
    assert len(list(Path("adapters").glob("state-*"))) == 3


def test_metrics_have_a_line_for_each_report(go):
    go(steps_per_eval=2)
    lines = [json.loads(line) for line in Path("adapters/metrics.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["split"]) for line in lines if "split" in line] == [
        *((1, "valid"), (2, "valid"), (3, "train"), (4, "valid"), (6, "valid"), (6, "train"))
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(go):
    Path("adapters").mkdir()
    Path("adapters").chmod(0o500)
    with pytest.raises(UserError, match="adapter_path: adapters cannot be written"):
        go()
