"""A tiny byte-level BPE tokenizer, hand-made chat templates, and helpers that write rows to files."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mlx_lm_lora_prefplus.data import prepare
from mlx_lm_lora_prefplus.settings import DataSettings

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# As Qwen3: the last answer gets an empty think block, and so does the opening when thinking is off.
EMPTY_THINK = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As DeepSeek-R1: the opening starts a thought that the finished conversation does not hold.
OPEN_THINK = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
HOST_FALLBACK = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{{ (eos_token or '') if message['role'] == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{{ m['content'] }}"
    "{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama": LLAMA,
    "empty_think": EMPTY_THINK,
    "open_think": OPEN_THINK,
    "fallback": HOST_FALLBACK,
}

CORPUS = [
    "user: What is the capital of France?\nassistant: Paris is the capital of France.",
    "user\nassistant\nsystem\nassistant: I am here. assistant: You are there.",
    "\n\nHuman: Hello there\n\nAssistant: Hello, how can I help you today?",
] * 4


def make_tokenizer(template: str = CHATML, *, bos: bool = False, think: bool = True) -> TokenizerWrapper:
    """bos: the tokenizer's own `encode` puts <s> first."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", *(["<think>", "</think>"] if think else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    eos = "<|im_end|>" if "<|im_end|>" in template else "</s>"
    inner = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token=eos,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    return TokenizerWrapper(inner)


@pytest.fixture(scope="session")
def chatml() -> TokenizerWrapper:
    return make_tokenizer()


def write(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSON Lines, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tokenise(tmp_path, chatml):
    """Rows → the Split that `prepare` makes of them; keyword arguments are settings."""

    def run(rows: list[dict], tokenizer=chatml, *, kind="paired", add_bos=False, add_ends=False, **settings):
        path = write(tmp_path / "rows.jsonl", rows)
        settings = DataSettings(data=str(path), **settings)
        how = {"add_bos": add_bos, "add_ends": add_ends, "progress": False, "cache_dir": tmp_path / "cache"}
        return prepare(settings, tokenizer, ["train"], kind=kind, **how)["train"]

    return run


PAIR = {"prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."}


def token_rows(kind: str, count: int, longest: int = 12) -> list[dict]:
    """Token rows of one kind, of uneven lengths; no token and no score comes twice."""
    rng = np.random.default_rng(0)
    ids = iter(range(1, 10**9))
    draw = lambda: list(itertools.islice(ids, int(rng.integers(1, longest + 1))))  # noqa: E731
    make = {
        "paired": lambda i: {"prompt": draw(), "chosen": draw(), "rejected": draw(), "margin": i + 0.5},
        "unpaired": lambda i: {"prompt": draw(), "completion": draw(), "label": float(rng.integers(2))},
        "ranked": lambda i: {
            "prompt": draw(),
            "completions": [draw() for _ in range(2 + i % 4)],
            "scores": [float(i - k) for k in range(2 + i % 4)],
        },
    }
    return [make[kind](i) for i in range(count)]
