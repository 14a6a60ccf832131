"""Running out of memory is recognised, and three settings that would lower it are named with their share. So is a stop
by macOS.
"""

import re

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.engine.memory import advice as memory
from mlx_lm_lora_prefplus.engine.mlx_errors import is_out_of_memory
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import iterate_batches, random_rows, tiny_llama

TEXTS = (
    "[metal::malloc] Attempting to allocate 34359738368 bytes which is greater than the maximum allowed buffer size",
    "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemo",
    "[malloc_or_wait] Unable to allocate 4294967296 bytes.",
    "cudaMallocAsync(&data, size, stream) failed: out of memory",
    "std::bad_alloc",
    "[metal::malloc] Resource limit (499000) exceeded.",
)


@pytest.mark.parametrize("text", TEXTS)
def test_what_mlx_says_is_recognised(text):
    assert is_out_of_memory(RuntimeError(text))


def test_other_errors_are_not():
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("[matmul] Last dimension of first input must match"))


@pytest.mark.parametrize(
    "text",
    [
        "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
        "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
    ],
)
def test_a_stop_by_macos_is_explained(text):
    told = "kept the display waiting: .*displaysleepnow.*batch_size 4 → 2.*--resume"
    with pytest.raises(UserError, match=told), memory.explained(tiny_llama(), RunSettings(batch_size=4)):
        raise RuntimeError(f"[METAL] Command buffer execution failed: {text}.")


def advice(batch_size=4, **settings):
    model = tiny_llama()
    batch = next(iterate_batches(random_rows(batch_size, longest=40), batch_size=batch_size, shuffle=False))
    mx.eval(model(batch.tokens))
    return memory.advice(RuntimeError(TEXTS[2]), model, batch, RunSettings(batch_size=batch_size, **settings))


def test_the_message_says_what_was_asked_what_is_there_and_what_helps():
    text = advice()
    assert "on 4 examples (8 rows of up to" in text
    assert "MLX requested 4.3 GB more" in text and "The machine has" in text
    assert "batch_size 4 → 2 (with gradient_accumulation_steps 1 → 2 the updates stay the same)" in text
    assert "memory: low" in text and "max_seq_length → " in text
    assert len(re.findall(r"about [\d.]+ GB less", text)) == 3


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_size": 1}, ["memory: low", "max_seq_length", "num_layers"]),
        ({"batch_size": 1, "grad_checkpoint": True}, ["max_seq_length", "num_layers", "rank"]),
        ({"batch_size": 1, "memory": "low"}, ["max_seq_length", "num_layers", "rank"]),
        ({"batch_size": 1, "memory": "balanced", "grad_checkpoint": True}, ["memory: low:", "max_seq_length"]),
        ({"token_budget": 4096}, ["token_budget 4096 → 2048", "memory: low", "max_seq_length"]),
        ({"efficient_long_context": True}, ["batch_size 4 → 2", "max_seq_length", "long_context_chunk 512 → 256"]),
        ({"long_context_chunk": 8}, ["batch_size", "memory: low", "efficient_long_context"]),
        ({"batch_size": 1, "grad_checkpoint": True, "train_type": "full"}, ["max_seq_length", "train_type: lora"]),
    ],
    ids=str,
)
def test_only_what_is_not_done_yet_is_advised(settings, named):
    text = advice(**settings)
    assert all(one in text for one in named)


@pytest.mark.parametrize(
    "error",
    [RuntimeError(TEXTS[2]), RuntimeError("GPU Timeout"), ValueError("[Primitive::vjp] Not implemented")],
    ids=str,
)
def test_an_error_is_explained_once(error):
    """The reference pass of streamed rows runs inside the training loop."""
    outer, inner = (memory.explained(tiny_llama(), RunSettings()) for _ in range(2))
    with pytest.raises(UserError) as told, outer, inner:
        raise error
    assert told.value.__cause__ is error


def test_at_the_start_nothing_is_said_of_steps_and_of_saved_files():
    """The test of methods has two rows at most, whatever the batch size."""
    settings, error = RunSettings(batch_size=8), RuntimeError(TEXTS[2])
    text = memory.advice(error, tiny_llama(), None, settings, trains=False, starts=True)
    assert text.endswith("To reduce it: a smaller model, or one with 4-bit weights.") and "step" not in text
    text = memory.stopped(RuntimeError("GPU Timeout"), None, settings, starts=True)
    assert text.endswith("makes them smaller: a smaller max_seq_length.")


def test_there_is_always_something_to_do():
    """In the reference pass, with one row and no gradient, no setting reduces the memory."""
    text = memory.advice(RuntimeError(TEXTS[2]), tiny_llama(), None, RunSettings(batch_size=1), trains=False)
    assert "To reduce it: a smaller model, or one with 4-bit weights." in text


def test_a_config_with_resume_needs_no_option():
    """As each round of `rounds`."""
    assert "continue with --resume (--resume force with another batch_size" in advice()
    assert "continue with the same command (resume: force with another batch_size" in advice(resume=True)


@pytest.mark.usefixtures("compiling")
@pytest.mark.slow
def test_halving_the_batch_saves_about_what_it_says():
    """Measured: the peak above the weights at batch 8 and at batch 4."""
    from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
    from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
    from mlx_lm_lora_prefplus.trainers import CPO

    model = tiny_llama(hidden=64, layers=4)
    rows = [{"prompt": [1] * 64, "chosen": [2] * 64, "rejected": [3] * 64}] * 8

    def peak(size):
        step = GradientStep(CPO, PlainPolicy(model), CPO.options(), compiled=True)
        batch = next(iterate_batches(rows, batch_size=size, shuffle=False))
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(step(batch, batch.units())[:2])
        return mx.get_peak_memory() - before

    assert peak(4) / peak(8) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("kind", [mx.cpu, mx.gpu])
@pytest.mark.parametrize("share", [0.95, 1.5])
def test_what_mlx_uses_is_bounded_on_a_gpu(kind, share, monkeypatch):
    """share: MLX's own limit on CUDA and on Metal, as a share of the memory."""
    limits: dict[str, int] = {}
    there = memory.total_memory()
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu) if kind == mx.cpu else _Gpu)
    monkeypatch.setattr(mx, "get_memory_limit", lambda: int(share * there))
    monkeypatch.setattr(mx, "set_cache_limit", lambda limit: limits.update(cache=limit))
    monkeypatch.setattr(mx, "set_memory_limit", lambda limit: limits.update(memory=limit))
    memory.bound_memory()
    expected = {"cache": there // 4, "memory": int(min(share, 1) * there)}
    assert limits == ({} if kind == mx.cpu else expected)


class _Gpu:
    type = mx.gpu
