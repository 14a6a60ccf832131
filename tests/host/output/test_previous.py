"""Weights that a run weights of another run are never replaced: moved aside and told, or the run does not start."""

import json
import re
from pathlib import Path

import mlx.core as mx
import mlx_lm_lora.train as host
import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.output.aside import find_previous, holds_fused, record_fused, set_aside, written_by_us
from mlx_lm_lora_prefplus.host.seam.install import activate
from tests.conftest import write_pairs

activate(host)

FOREIGN = b"weights of another program"


@pytest.fixture
def go(model_folder, tmp_path, monkeypatch, capsys):
    """Run the host's `main` on a small config; returns what was printed."""
    write_pairs(tmp_path / "data", train=8, valid=3, test=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "cache"))

    def run(**changes) -> str:
        config = {"model": str(model_folder), "data": "data", "train": True, "train_mode": "dpo", "iters": 2}
        config |= {"batch_size": 4, "learning_rate": 1e-2, "save_every": 1, "fuse": False, "num_layers": 1}
        capsys.readouterr()
        host.main({**config, **changes})
        return re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)

    return run


def sft_adapter() -> None:
    Path("adapters").mkdir()
    mx.save_safetensors("adapters/adapters.safetensors", {"of.another": mx.ones((2,))})
    Path("adapters/adapter_config.json").write_text("{}")


def content(folder: str) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_an_adapter_of_another_program_is_moved_and_the_ways_on_are_told(go, resume):
    sft_adapter()
    before = content("adapters")
    out = go(resume=resume)
    assert content("adapters/previous-1") == before
    told = next(line for line in out.splitlines() if "weights of another run" in line)
    assert told.startswith("[WARNING] adapters contains weights of another run. Before the first step, these ")
    assert "(adapters.safetensors and 1 more file, 0.00 MB) are moved to adapters/previous-1" in told
    assert "resume_adapter_file: adapters/adapters.safetensors starts from those weights" in told
    assert "reference_model_path: adapters/adapters.safetensors uses them as the reference" in told
    assert "another adapter_path keeps them in place" in told
    assert out.index("weights of another run") < out.index("Loading model")
    assert written_by_us(Path("adapters/adapters.safetensors"))


@pytest.mark.slow
def test_the_same_command_again_and_again_loses_no_run(go):
    go(seed=1, save_best="loss")
    first = content("adapters")
    go(seed=2)
    assert content("adapters/previous-1") == first
    second = {name: data for name, data in content("adapters").items() if not name.startswith("previous-")}
    assert not any(name.startswith("best/") for name in second)
    go(seed=3)
    assert content("adapters/previous-1") == first and content("adapters/previous-2") == second
    assert "Resuming after iteration 2" in go(seed=1, adapter_path="adapters/previous-1", resume=True, iters=3)


def test_nothing_moves_before_the_run_can_start(go):
    sft_adapter()
    before = content("adapters")
    with pytest.raises(UserError, match="no file or folder"):
        go(data="nowhere/at.jsonl")
    assert content("adapters") == before


@pytest.mark.slow
def test_a_resumed_run_knows_its_own_files_and_those_of_others(go):
    go()
    own = Path("adapters/adapters.safetensors").read_bytes()
    assert "weights of another run" not in go(resume=True, iters=3) and not Path("adapters/previous-1").exists()
    mx.save_safetensors("adapters/adapters.safetensors", {"of.another": mx.ones((2,))})
    other = Path("adapters/adapters.safetensors").read_bytes()
    assert "adapters contains weights that are in none of the run's saved states" in go(resume=True, iters=4)
    assert Path("adapters/previous-1/adapters.safetensors").read_bytes() == other != own


@pytest.mark.slow
def test_adapters_of_another_run_of_ours_are_kept_where_a_run_goes_on(go):
    go(adapter_path="other", seed=7)
    go()
    other = Path("other/adapters.safetensors").read_bytes()
    Path("adapters/adapters.safetensors").write_bytes(other)
    assert written_by_us(Path("adapters/adapters.safetensors"))
    assert "adapters contains weights that are in none of the run's saved states" in go(resume=True, iters=4)
    assert Path("adapters/previous-1/adapters.safetensors").read_bytes() == other


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapters.safetensors", "0000001_adapters.safetensors"])
def test_going_on_from_a_file_of_the_same_folder(go, name, monkeypatch):
    go()
    first = content("adapters")
    again = {"resume_adapter_file": f"adapters/{name}", "seed": 2}

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mlx_lm_lora_prefplus.engine.train.loop.Loop.optimizer_step", killed)
        go(**again)
    assert content("adapters/previous-1") == first
    out = go(**again)  # the file is where the command looks for it
    assert not Path("adapters/previous-2").exists()
    assert content("adapters/previous-1") == first
    assert Path("adapters/adapters.safetensors").read_bytes() != first["adapters.safetensors"]
    assert "contains weights that this run starts from" not in out


@pytest.mark.slow
def test_comparing_with_a_file_of_the_same_folder_also_after_a_resume(go, tmp_path):
    go(adapter_path="sft", seed=5)
    Path("adapters").mkdir()
    for name in ("adapters.safetensors", "adapter_config.json"):
        Path("adapters", name).write_bytes(Path("sft", name).read_bytes())
    go(adapter_path="alone", reference_model_path="sft", iters=3)
    assert "starts from or uses as its reference" in go(reference_model_path="adapters", iters=2)
    (tmp_path / "cache").rename(tmp_path / "gone")  # the reference is loaded again
    go(reference_model_path="adapters", iters=3, resume=True)
    assert content("adapters")["adapters.safetensors"] == content("alone")["adapters.safetensors"]
    assert json.loads(Path("adapters/run.json").read_text())["previous"] == "previous-1"


def test_a_fused_model_of_another_program_is_moved_and_our_own_is_replaced(go):
    Path("adapters").mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "notes.txt"):
        Path("adapters", name).write_bytes(FOREIGN)
    assert "adapters contains weights of another run" in go(fuse=True)
    assert set(content("adapters/previous-1")) == {"model.safetensors", "config.json", "tokenizer.json"}
    assert set(content("adapters/previous-1").values()) == {FOREIGN}
    assert Path("adapters/notes.txt").read_bytes() == FOREIGN
    go(fuse=True)
    assert not Path("adapters/previous-2/model.safetensors").exists()
    assert Path("adapters/previous-2/adapters.safetensors").exists()
    assert Path("adapters/model.safetensors").stat().st_size > len(FOREIGN)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model", "reference_model_path"])
def test_a_model_that_the_run_reads_is_not_replaced_by_its_fused_one(go, model_folder, key):
    for file in model_folder.iterdir():
        Path("whole").mkdir(exist_ok=True)
        Path("whole", file.name).write_bytes(file.read_bytes())
    before = content("whole")
    with pytest.raises(UserError, match=f"adapter_path: whole is also the {key}, .* --no-fuse"):
        go(**{key: "whole"}, adapter_path="whole", fuse=True)
    assert content("whole") == before
    go(**{key: "whole"}, adapter_path="whole")
    assert content("whole").items() >= before.items()


def test_a_model_of_others_in_lm_studio_is_not_replaced(go, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".lmstudio/models/mlx_lm_lora/mine"
    folder.mkdir(parents=True)
    go(fuse=True, lm_studio_name="mine")
    go(fuse=True, lm_studio_name="mine", seed=2)
    (folder / "model.safetensors").write_bytes(FOREIGN)
    with pytest.raises(UserError, match="lm_studio_name: .* which no run of this package wrote"):
        go(fuse=True, lm_studio_name="mine")
    assert (folder / "model.safetensors").read_bytes() == FOREIGN


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "mine"])
def test_a_finished_run_is_fused_once_and_not_mistaken_for_another(go, monkeypatch, tmp_path, name):
    """The fused model of another run may be where that of this run belongs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".lmstudio/models/mlx_lm_lora/mine").mkdir(parents=True)
    assert "Fusing Model" in go(fuse=True, lm_studio_name=name)
    assert "Fusing Model" not in go(fuse=True, lm_studio_name=name, resume=True)
    go(fuse=False, seed=2)
    assert "Fusing Model" in go(fuse=True, lm_studio_name=name, seed=2, resume=True)
    assert "Fusing Model" not in go(fuse=True, lm_studio_name=name, seed=2, resume=True)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-8])])
def test_a_damaged_fused_model_is_fused_again(tmp_path, damage):
    shards = [tmp_path / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file in (*shards, tmp_path / "adapters.safetensors"):
        mx.save_safetensors(str(file), {"weight": mx.ones((8,))})
    record_fused(tmp_path, tmp_path / "adapters.safetensors")
    assert holds_fused(tmp_path, tmp_path / "adapters.safetensors")
    damage(shards[1])
    assert not holds_fused(tmp_path, tmp_path / "adapters.safetensors")
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"weight": mx.zeros((9,))})
    shards[1].unlink(missing_ok=True)
    assert holds_fused(tmp_path, tmp_path / "adapters.safetensors"), "a model of others stays"


def test_a_finished_run_without_lm_studio(go, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    go()
    with pytest.raises(UserError, match="the fused model could not be written"):
        go(fuse=True, lm_studio_name="mine", resume=True)


def test_without_hard_links_a_copy_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("not here")))
    file = tmp_path / "adapters.safetensors"
    file.write_bytes(FOREIGN)
    previous = find_previous(file, resumed=False, fuses=False)
    set_aside(previous, {file.resolve()})
    assert file.read_bytes() == (previous.target / file.name).read_bytes() == FOREIGN
    assert find_previous(file, resumed=False, fuses=False) is None


def test_what_cannot_be_moved_ends_the_run(tmp_path):
    file = tmp_path / "adapters.safetensors"
    file.write_bytes(FOREIGN)
    previous = find_previous(file, resumed=False, fuses=False)
    previous.target.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="could not be moved to .*previous-1"):
        set_aside(previous)
    assert file.read_bytes() == FOREIGN


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\xff" * 20, (2).to_bytes(8, "little") + b"{}", (4).to_bytes(8, "little") + b"null"]
)
def test_what_is_no_safetensors_file_is_not_ours(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    assert not written_by_us(tmp_path / "file")
