"""Train a small model on the facts of `world`: tokenizer, pretraining, and the folder for `mlx_lm.load`."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm.models import llama
from mlx_lm.utils import save_config, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from . import world

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
USER, ASSISTANT = "<user>", "<assistant>"
SPECIAL = (PAD, UNK, BOS, EOS, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<user>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

# Widths are multiples of 128, so that the model can be quantised to 4 bits with any usual group size.
SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}

PRETRAIN_STEPS = 400
BATCH = 6
PEAK_RATE = 2e-3
WARM_UP = 20
SEED = 7


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer for every sentence of the world. Decoding restores the text exactly."""
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    texts = [text for question in world.questions() for text in (question.text, world.blunt(question))]
    texts += [*world.OPENERS, world.CLOSER]
    pieces = sorted({piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {piece: index for index, piece in enumerate((*SPECIAL, *pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
    )


def encode(tokenizer: Any, question: str, answer: str | None = None) -> list[int]:
    """Return the tokens of a dialogue by the chat template; without an answer, up to the start of the
    assistant's turn.
    """
    messages = [{"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=answer is None, return_dict=False)


def _batches(tokenizer: Any, steps: int) -> Iterator[tuple[mx.array, mx.array]]:
    """Yield tokens and answer mask, both (BATCH, width), for each step."""
    rows = [(encode(tokenizer, q), encode(tokenizer, q, a)) for q, a in world.corpus(steps * BATCH, seed=SEED)]
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        width = max(len(row) for _, row in batch)
        tokens = np.zeros((BATCH, width), dtype=np.int32)
        mask = np.zeros((BATCH, width), dtype=np.float32)
        for i, (prompt, row) in enumerate(batch):
            tokens[i, : len(row)] = row
            mask[i, len(prompt) : len(row)] = 1
        yield mx.array(tokens), mx.array(mask)


def _loss(model: nn.Module, tokens: mx.array, mask: mx.array) -> mx.array:
    """Return the mean cross-entropy of the answer tokens, in nats."""
    losses = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
    return (losses * mask[:, 1:]).sum() / mask[:, 1:].sum()


def pretrain(tokenizer: Any, steps: int = PRETRAIN_STEPS) -> tuple[nn.Module, dict[str, Any]]:
    """Pretrain a model on the corpus of the world. Returns the model and its config."""
    config = SHAPE | {
        "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    mx.random.seed(SEED)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    warm_up = max(1, min(WARM_UP, steps // 2))
    rise = optim.linear_schedule(0.0, PEAK_RATE, warm_up)
    fall = optim.cosine_decay(PEAK_RATE, max(1, steps - warm_up))
    # The second moment averages over few steps (β₂ = 0.95), so that the facts are learned in few steps.
    optimizer = optim.AdamW(optim.join_schedules([rise, fall], [warm_up]), betas=[0.9, 0.95], weight_decay=0.0)
    loss_and_gradient = nn.value_and_grad(model, _loss)
    for step, (tokens, mask) in enumerate(_batches(tokenizer, steps), start=1):
        loss, gradient = loss_and_gradient(model, tokens, mask)
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state, loss)
        if step % 50 == 0 or step == steps:
            print(f"  pretraining step {step}/{steps}: {loss.item():.2f} nats per token", flush=True)
    return model, config


def make_model(folder: Path, steps: int = PRETRAIN_STEPS) -> None:
    """Write tokenizer, config and weights into `folder`, as `mlx_lm.load` reads them."""
    tokenizer = make_tokenizer()
    model, config = pretrain(tokenizer, steps)
    tokenizer.save_pretrained(folder)
    save_config(config, folder / "config.json")
    save_model(folder, model)
