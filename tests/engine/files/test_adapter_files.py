"""Adapter files are whole or not there, and a file that does not fit is refused before anything changes."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.files import adapter_files as checkpoint
from mlx_lm_lora_prefplus.engine.files.adapter_files import check_writable, load_adapter_weights, save_adapters
from mlx_lm_lora_prefplus.errors import UserError
from tests.conftest import tiny_llama, with_lora


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    (tmp_path / "best").mkdir()
    torn = (".tmp-adapter_config.json", ".tmp-state-0000001.safetensors", "best/.tmp-adapters.safetensors")
    kept = ("adapter_config.json", ".tmp-notes.txt", "best/adapters.safetensors")
    for name in (*torn, *kept):
        (tmp_path / name).write_text("x")
    check_writable(tmp_path / "adapters.safetensors")
    assert not any((tmp_path / name).exists() for name in torn)
    assert all((tmp_path / name).exists() for name in kept)


def test_files_are_the_hosts(tmp_path):
    model = with_lora(tiny_llama())
    numbered = save_adapters(model, tmp_path / "adapters.safetensors", {"num_layers": -1}, 100)
    assert numbered == tmp_path / "0000100_adapters.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0000100_adapters.safetensors",
        "adapter_config.json",
        "adapters.safetensors",
    ]
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {"num_layers": -1}
    trainable = {name for name, _ in tree_flatten(model.trainable_parameters())}
    assert set(mx.load(str(numbered))) == trainable


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    model, file = with_lora(tiny_llama()), tmp_path / "adapters.safetensors"
    save_adapters(model, file, {}, None)
    before = file.read_bytes()

    def full_disk(path, weights, metadata):
        Path(path).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.mx, "save_safetensors", full_disk)
    with pytest.raises(UserError, match=r"adapters\.safetensors: .*No space left.*saved earlier are intact"):
        save_adapters(model, file, {}, None)
    assert file.read_bytes() == before
    assert not list(tmp_path.glob(".tmp*"))


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="adapter_path: .*file/adapters cannot be written"):
        check_writable(tmp_path / "file" / "adapters" / "adapters.safetensors")


@pytest.mark.parametrize("name", ["metrics.jsonl", "adapters.safetensors", "run.json"])
def test_a_folder_in_the_place_of_a_file_is_told_before_the_run(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"adapter_path: .*{name} is a folder, and the run writes a file of this name"):
        check_writable(tmp_path / "adapters.safetensors")


def test_round_trip(tmp_path):
    model, other = with_lora(tiny_llama()), with_lora(tiny_llama(), moved=False)
    save_adapters(model, tmp_path / "a.safetensors", {}, None)
    load_adapter_weights(other, tmp_path / "a.safetensors", "resume_adapter_file")
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(model(tokens), other(tokens))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: with_lora(tiny_llama(), rank=8), r"has shape \(.*\), expected \("),
        (lambda: with_lora(tiny_llama(layers=3)), "is not trained here"),
        (lambda: with_lora(tiny_llama(layers=1)), "is missing"),
    ],
)
def test_what_does_not_fit_is_refused_whole(tmp_path, made, message):
    model = with_lora(tiny_llama())
    before = model(mx.array([[1, 2, 3]]))
    save_adapters(made(), tmp_path / "a.safetensors", {}, None)
    with pytest.raises(UserError, match="resume_adapter_file: .*does not fit.*") as caught:
        load_adapter_weights(model, tmp_path / "a.safetensors", "resume_adapter_file")
    assert caught.match(message)
    assert mx.array_equal(model(mx.array([[1, 2, 3]])), before)


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_of_another_scale_compute_the_same(tmp_path, dora):
    """They were made with a scale of 10, and go on with one of 20."""
    made = with_lora(tiny_llama(), dora=dora)
    save_adapters(made, tmp_path / "adapters.safetensors", {"lora_parameters": {"scale": 10.0}}, None)
    model = with_lora(tiny_llama(), dora=dora, moved=False)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.scale = 20.0
    load_adapter_weights(model, tmp_path / "adapters.safetensors", "resume_adapter_file")
    tokens = mx.array([[1, 2, 3]])
    assert mx.allclose(model(tokens), made(tokens), atol=1e-5)
    assert not mx.allclose(model(tokens), tiny_llama()(tokens), atol=1e-3)


@pytest.mark.parametrize("text", ["", "[1]", '{"lora_parameters": 3}', "{}"])
def test_a_config_beside_adapters_that_says_no_scale_changes_nothing(tmp_path, text):
    made = with_lora(tiny_llama())
    save_adapters(made, tmp_path / "adapters.safetensors", {}, None)
    (tmp_path / "adapter_config.json").write_text(text)
    model = with_lora(tiny_llama(), moved=False)
    load_adapter_weights(model, tmp_path / "adapters.safetensors", "resume_adapter_file")
    assert mx.array_equal(model(mx.array([[1, 2]])), made(mx.array([[1, 2]])))


def test_unreadable_and_absent_files(tmp_path):
    model = with_lora(tiny_llama())
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 5)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_adapter_weights(model, tmp_path / "torn.safetensors", "resume_adapter_file")
    with pytest.raises(UserError, match=r"is a folder. Name the file in it, such as .*adapters\.safetensors"):
        load_adapter_weights(model, tmp_path, "resume_adapter_file")
    with pytest.raises(UserError, match="resume_adapter_file: there is no file"):
        load_adapter_weights(model, tmp_path / "absent.safetensors", "resume_adapter_file")


@pytest.mark.parametrize("dtype", [mx.complex64, mx.int32])
def test_numbers_of_another_type_are_damage(tmp_path, dtype):
    file = tmp_path / "adapters.safetensors"
    model = with_lora(tiny_llama())
    weights: dict = dict(tree_flatten(model.trainable_parameters()))
    name = next(iter(weights))
    mx.save_safetensors(str(file), {**weights, name: weights[name].astype(dtype)})
    with pytest.raises(UserError, match=f"is damaged: the numbers of {name} have the type {str(dtype)[9:]}"):
        load_adapter_weights(model, file, "resume_adapter_file")


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Could not write"), checkpoint.whole_file(tmp_path / "file" / "a.json"):
        pass
