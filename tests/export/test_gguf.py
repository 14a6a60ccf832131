"""GGUF by a reader of its own, llama.cpp's order of rows by rotary embeddings themselves, and what is refused."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_lm_lora_prefplus.errors import UserError
from tests.export.conftest import RANK, SCALE, put_adapter, save_base

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.o_proj": "attn_output",
    "mlp.down_proj": "ffn_down",
}


def read_gguf(file: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Metadata and float32 tensors, by the specification of version 3 (little-endian, ggml-org/ggml docs/gguf.md)."""
    data, at = file.read_bytes(), 0

    def take(form: str):
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return value

    def text() -> str:
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size : at].decode()

    assert take("4s") == b"GGUF" and take("I") == 3
    tensors, pairs = take("Q"), take("Q")
    metadata = {}
    for _ in range(pairs):
        name, kind = text(), take("I")
        metadata[name] = text() if kind == 8 else take({4: "I", 6: "f"}[kind])
    infos = []
    for _ in range(tensors):
        name, dimensions = text(), take("I")
        shape = [take("Q") for _ in range(dimensions)][::-1]
        assert take("I") == 0  # float32
        infos.append((name, shape, take("Q")))
    start = -(-at // 32) * 32
    found = {name: np.frombuffer(data, np.float32, int(np.prod(s)), start + o).reshape(s) for name, s, o in infos}
    return metadata, found


def rotated(rows: np.ndarray, heads: int, position: int, *, interleaved: bool) -> np.ndarray:
    """Rotary embeddings of queries (heads · size,): pairs are the two halves of a head, or neighbours."""
    x = rows.reshape(heads, -1)
    half = x.shape[1] // 2
    angle = position * 10000.0 ** (-np.arange(half) / half)
    a, b = (x[:, 0::2], x[:, 1::2]) if interleaved else (x[:, :half], x[:, half:])
    first, second = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return np.stack([first, second], axis=-1)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_the_update_is_that_of_mlx_lm(tmp_path, export, model_type):
    base = tmp_path / "base"
    put_adapter(save_base(base, model_type), tmp_path / "adapter", base)
    export(tmp_path / "adapter", "--to", "gguf")
    metadata, tensors = read_gguf(tmp_path / "adapter" / "gguf" / "adapter.gguf")
    assert metadata["general.architecture"] == model_type
    assert metadata["general.type"] == "adapter" and metadata["adapter.type"] == "lora"
    assert metadata["adapter.lora.alpha"] == pytest.approx(SCALE * RANK)
    ours = load_file(tmp_path / "adapter" / "adapters.safetensors")
    assert len(tensors) == len(ours) == 28
    for name, theirs in NAMES.items():
        a, b = (ours[f"model.layers.1.{name}.lora_{side}"] for side in "ab")
        theirs_a, theirs_b = (tensors[f"blk.1.{theirs}.weight.lora_{side}"] for side in "ab")
        update, found = SCALE * (a @ b).T, metadata["adapter.lora.alpha"] / RANK * theirs_b @ theirs_a
        if model_type == "llama" and name in ("self_attn.q_proj", "self_attn.k_proj"):
            # llama.cpp turns neighbours where mlx-lm turns halves: the turned pairs must be the same.
            x, heads = np.random.default_rng(0).normal(size=32), 4 if "q_proj" in name else 2
            update = rotated(update @ x, heads, 7, interleaved=False)
            found = rotated(found @ x, heads, 7, interleaved=True)
        np.testing.assert_allclose(found, update, atol=1e-5)


def test_the_modelfile_names_the_base(adapter, export):
    export(adapter, "--to", "gguf", "--base", "llama3.2")
    assert (adapter / "gguf" / "Modelfile").read_text() == "FROM llama3.2\nADAPTER ./adapter.gguf\n"


def test_what_gguf_does_not_have(tmp_path, adapter, export):
    put_adapter(save_base(tmp_path / "dora_base"), tmp_path / "dora", tmp_path / "dora_base", dora=True)
    with pytest.raises(UserError, match=r"no DoRA adapters.*convert_hf_to_gguf.*mlx_lm\.fuse --dequantize"):
        export(tmp_path / "dora", "--to", "gguf")
    assert not (tmp_path / "dora" / "gguf").exists()
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "model_type": "mamba2"}))
    with pytest.raises(UserError, match=r"GGUF of mamba2 adapters is not supported\. Supported model types: .*llama, "):
        export(adapter, "--to", "gguf")


def test_the_reader_of_the_gguf_package_agrees(adapter, export):
    gguf = pytest.importorskip("gguf")
    export(adapter, "--to", "gguf")
    file = adapter / "gguf" / "adapter.gguf"
    reader, (metadata, tensors) = gguf.GGUFReader(file), read_gguf(file)
    assert {name: field.contents() for name, field in reader.fields.items() if name in metadata} == metadata
    assert all(np.array_equal(tensor.data, tensors[tensor.name]) for tensor in reader.tensors)
