"""Make trl_ids.json anew: the token ids that TRL's own trainers make of rows, templates and tokenizers defined here.

    python tests/data/tokens/make_trl_ids.py

Needs trl, peft and torch, which the tests do not: run it in an environment of its own. Each trainer is built with a
small random model, and its data set is read after its own preparation.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

FILE = Path(__file__).parent / "trl_ids.json"

CORPUS = [
    "user: What is the capital of France?\nassistant: Paris is the capital of France.",
    "user\nassistant\nsystem\ntool\nassistant: I am here. assistant: You are there.",
    "SUBREDDIT: r/pets\nTITLE: My cat is gone\nTL;DR: The cat is gone.",
    "\n\nHuman: Hello there\n\nAssistant: Hello, how can I help you today?",
] * 4

CHATML = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for call in m['tool_calls'] or [] %}<call>{{ call | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    # As Llama 2 and Mistral: BOS first, EOS at the very end.
    "instruct": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}</s>"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}",
    # As Qwen3: the last answer gets an empty thought; the opening gets one where thinking is off.
    "empty_think": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    # As DeepSeek-R1: the opening starts a thought that the finished conversation does not hold.
    "open_think": CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),
    # No end of a turn at all.
    "bare": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}
TOKENIZERS = {
    "adds bos": {"bos": "<s>", "eos": "</s>", "adds_bos": True},
    "has bos": {"bos": "<s>", "eos": "<|im_end|>", "adds_bos": False},
    "no bos": {"bos": None, "eos": "<|im_end|>", "adds_bos": False},
}


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


SIDES = ("chosen", "rejected")
SHORT = 24  # tokens
PETS = "SUBREDDIT: r/pets\nTITLE: My cat is gone\nTL;DR:"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
TEXT_PAIRS = [
    {"prompt": "What is the capital of France?", "chosen": " Paris.", "rejected": " Rome, I am told."},
    {"prompt": PETS, "chosen": " The cat is gone.", "rejected": " A dog"},
    {"prompt": "The capital of", "chosen": "France", "rejected": " France is here"},  # tokens merge across the end
    {"prompt": "user: ", "chosen": "I am here.</s>", "rejected": "You are there.<|im_end|>"},  # an end of their own
    {"prompt": "\n\nHuman: Hello there\n\nAssistant:", "chosen": " Hello", "rejected": " Hello, é🙂 "},
]
IMPLICIT_TEXT = [
    {"chosen": "The capital of France is Paris.", "rejected": "The capital of France is Rome."},
    {"chosen": "My cat is gone", "rejected": "My cat is"},  # one begins with the other
    {"chosen": "\n\nHuman: Hello\n\nAssistant: Hello there", "rejected": "\n\nHuman: Hello\n\nAssistant: Help"},
    {"chosen": "A cat", "rejected": "The dog"},  # nothing in common
]
CONVERSATIONS = [
    ([user("What is the capital of France?")], [bot("Paris.")], [bot("Rome, I am told.")]),
    ([system("I am here."), user("Hello there")], [bot("Hello")], [bot("Hello, how can I help you today?")]),
    ([user("Hello"), bot("Hello!"), user("My cat is gone")], [bot("I am there.")], [bot("é🙂")]),
]
EXPLICIT = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in CONVERSATIONS]
IMPLICIT = [{"chosen": prompt + chosen, "rejected": prompt + rejected} for prompt, chosen, rejected in CONVERSATIONS]
ROWS = {
    "text": TEXT_PAIRS,
    "text, implicit prompt": IMPLICIT_TEXT,
    "text, unpaired": [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in TEXT_PAIRS
        for side in SIDES
    ],
    "messages": EXPLICIT,
    "messages, implicit prompt": IMPLICIT,
    "messages, unpaired": [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in EXPLICIT
        for side in SIDES
    ],
    "messages, several turns": [
        {
            "prompt": [user("Hello")],
            "chosen": [bot("Hello!"), user("My cat is gone"), bot("I am there.")],
            "rejected": [bot("Help!"), user("You are there."), bot("é🙂")],
        },
    ],
    "messages, tools": [{**row, "tools": json.dumps([WEATHER])} for row in EXPLICIT],
    "messages, template arguments": [{**row, "chat_template_kwargs": {"enable_thinking": False}} for row in EXPLICIT],
}


def core_tokenizer():
    """Byte-level BPE, as JSON. It is kept in the file, so that the tests need not train the same one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=360,
            special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return core.to_str()


def tokenizer_of(core, template, *, bos, eos, adds_bos):
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer.from_str(core)
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token="<pad>", chat_template=template
    )


def trainer_of(name, rows, tokenizer, max_length, folder):
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer, config = {
        "dpo": (DPOTrainer, DPOConfig),
        "cpo": (CPOTrainer, CPOConfig),
        "orpo": (ORPOTrainer, ORPOConfig),
        "kto": (KTOTrainer, KTOConfig),
    }[name]
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model, reference = (LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)) for _ in range(2))
    arguments = config(
        output_dir=folder,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=2,
        max_length=max_length,
    )
    compared = {"ref_model": reference} if name in ("dpo", "kto") else {}
    data = Dataset.from_list(rows)
    return trainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer, **compared)


def ids_of(name, rows, tokenizer, max_length, folder):
    """Of each row of the trainer its number and [prompt, completion] of each completion, a pair's chosen one first.

    A row that is not there was left out, or refused by the trainer: CPO and ORPO refuse a row whose prompt has fewer
    tokens before the completion than alone.
    """
    try:
        trainer = trainer_of(name, rows, tokenizer, max_length, folder)
    except ValueError:
        alone = rows if len(rows) > 1 else []
        return [made for row in alone for made in ids_of(name, [row], tokenizer, max_length, folder)]
    return [[row["row"], completions_of(name, trainer, row)] for row in trainer.train_dataset]


def completions_of(name, trainer, row):
    if name in ("cpo", "orpo"):
        return [parted(row[f"{side}_input_ids"], [x != -100 for x in row[f"{side}_labels"]]) for side in SIDES]
    batch = trainer.data_collator([{**row, "KL_completion_ids": row["completion_ids"]} if name == "kto" else row])
    columns = (batch[key].tolist() for key in ("input_ids", "attention_mask", "completion_mask"))
    made = []
    for ids, there, completion in zip(*columns, strict=True):
        made.append(parted([x for x, is_there in zip(ids, there, strict=True) if is_there], completion))
    return made


def parted(ids, completion):
    end = (*completion, 1).index(1)
    return [ids[:end], ids[end:]]


def cases():
    """Trainer, tokenizer, template, rows, max_length of all that is tried."""
    for tokenizer in TOKENIZERS:
        for form in ROWS:
            for template in TEMPLATES:
                if template != "chatml" and (form.startswith("text") or "implicit" in form):
                    continue
                if ("tools" in form and template != "chatml") or ("arguments" in form and template != "empty_think"):
                    continue
                if tokenizer == "no bos" and template == "instruct":
                    continue
                for trainer in ("kto",) if "unpaired" in form else ("dpo", "cpo", "kto"):
                    yield trainer, tokenizer, template, form, None
    for form in ("text", "messages"):
        for trainer in ("dpo", "cpo", "kto"):
            yield trainer, "has bos", "chatml", form, SHORT


def main():
    core, made = core_tokenizer(), []
    with tempfile.TemporaryDirectory() as folder:
        for trainer, tokenizer, template, form, max_length in cases():
            rows = [{**row, "row": number} for number, row in enumerate(ROWS[form], 1)]
            given = tokenizer_of(core, TEMPLATES[template], **TOKENIZERS[tokenizer])
            ids = ids_of(trainer, rows, given, max_length or 10**6, folder)
            if trainer == "cpo" and ids != ids_of("orpo", rows, given, max_length or 10**6, folder):
                raise SystemExit(f"CPO and ORPO differ: {tokenizer}, {template}, {form}")
            made.append([trainer, tokenizer, template, form, max_length, ids])
    packages = ("trl", "transformers", "tokenizers", "torch", "datasets")
    content = {
        "made_with": {name: version(name) for name in packages},
        "tokenizer": core,
        "tokenizers": TOKENIZERS,
        "templates": TEMPLATES,
        "rows": ROWS,
        "case": ["trainer", "tokenizer", "template", "rows", "max_length", "[row, [[prompt, completion], ...]]"],
        "cases": made,
    }
    FILE.write_text(json.dumps(content, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
