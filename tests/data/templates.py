# ruff: noqa: E501  (a line break would be part of a template)
"""Chat templates of the forms that widely used models have, written for these tests, and tokenizers that take them."""

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

QWEN3 = """\
{%- if tools %}<|im_start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- set seen = namespace(question=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set seen.question = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role in ('user', 'system') %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% elif m.role == 'assistant' %}
{%- set thought = m.reasoning_content or '' %}{% set words = m.content or '' %}
{%- if '</think>' in words %}
{%- set thought = words.split('</think>')[0].split('<think>')[-1].strip() %}
{%- set words = words.split('</think>')[-1].lstrip() %}
{%- endif %}<|im_start|>assistant
{% if loop.index0 > seen.question and (loop.last or thought) %}<think>
{{ thought }}
</think>

{% endif %}{{ words }}
{%- for call in m.tool_calls or [] %}{{ '\n' if words or not loop.first }}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}
<tool_response>
{{ m.content }}
</tool_response>
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>
{% endif %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""

LLAMA3 = """\
{{ bos_token }}
{%- for m in messages %}
{%- if m.tool_calls %}<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>
{%- else %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

GEMMA3 = """\
{{ bos_token }}
{%- set lead = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}
{%- for m in (messages[1:] if lead else messages) %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ lead if loop.first }}{{ m.content | trim }}<end_of_turn>
{% endfor %}
{%- if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
GEMMA3 = GEMMA3.replace("{% endif %}\n<start_of_turn>{{", "{% endif %}<start_of_turn>{{")

MISTRAL = """\
{{ bos_token }}
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and m == asked[-1] %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]
{%- elif m.tool_calls %}[TOOL_CALLS] [
{%- for call in m.tool_calls %}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
{%- endfor %}]{{ eos_token }}
{%- elif m.role == 'tool' %}[TOOL_RESULTS] {"content": {{ m.content }}}[/TOOL_RESULTS]
{%- else %} {{ m.content }}{{ eos_token }}
{%- endif %}{% endfor %}"""

PHI4 = """\
{%- for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"""

DEEPSEEK = """\
{{ bos_token }}
{%- set state = namespace(tool=false) %}
{%- for m in messages %}
{%- if m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'user' %}{% set state.tool = false %}<｜User｜>{{ m.content }}
{%- elif m.role == 'tool' %}{% set state.tool = true -%}
<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜><｜tool▁outputs▁end｜>
{%- elif m.tool_calls %}<｜Assistant｜><｜tool▁calls▁begin｜>
{%- for call in m.tool_calls -%}
<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ call.function.name }}
{{ call.function.arguments | tojson }}<｜tool▁call▁end｜>
{%- endfor %}<｜tool▁calls▁end｜>{{ eos_token }}
{%- else %}{{ '' if state.tool else '<｜Assistant｜>' }}{{ m.content.split('</think>')[-1] }}{{ eos_token }}
{%- set state.tool = false %}
{%- endif %}{% endfor %}
{%- if add_generation_prompt and not state.tool %}<｜Assistant｜><think>
{% endif %}"""

GPT_OSS = """\
<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>
{%- set last = namespace(final=-1, name='') %}
{%- for m in messages %}{% if m.role == 'assistant' and not m.tool_calls %}{% set last.final = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>
{%- elif m.tool_calls %}
{%- if m.thinking and m.content %}{{ raise_exception('Either content or thinking') }}{% endif %}
{%- set last.name = m.tool_calls[0].function.name %}
{%- if m.thinking and loop.index0 > last.final %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif -%}
<|start|>assistant to=functions.{{ last.name }}<|channel|>commentary json<|message|>
{{- m.tool_calls[0].function.arguments | tojson }}<|call|>
{%- elif m.role == 'tool' %}<|start|>functions.{{ last.name }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>
{%- elif loop.last %}
{%- if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif -%}
<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>
{%- else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""

FORMS: dict[str, tuple[str, str, str, str]] = {
    "qwen3": (
        QWEN3,
        "<|im_end|>",
        "",
        "<|im_start|> <think> </think> <tool_call> </tool_call> <tool_response> </tool_response>",
    ),
    "llama3": (LLAMA3, "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|> <|end_header_id|>"),
    "gemma3": (GEMMA3, "<eos>", "<bos>", "<start_of_turn> <end_of_turn>"),
    "mistral": (
        MISTRAL,
        "</s>",
        "<s>",
        "[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
    ),
    "phi4": (PHI4, "<|im_end|>", "", "<|im_start|> <|im_sep|>"),
    "deepseek": (
        DEEPSEEK,
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        "<think> </think> <｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> <｜tool▁call▁begin｜> <｜tool▁sep｜> <｜tool▁call▁end｜> "
        "<｜tool▁calls▁end｜> <｜tool▁outputs▁begin｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜> <｜tool▁outputs▁end｜>",
    ),
    "gpt-oss": (GPT_OSS, "<|return|>", "", "<|start|> <|end|> <|message|> <|channel|> <|call|>"),
}
"""Name → template, end of sequence, beginning, further special tokens."""

PLAIN_WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Tokens of their own that are not special."""

CORPUS = [
    "user\nWhat is two and two?\n\nassistant\n\nIt is 4. And now? Paris is the capital of France.\n\n",
    'add {"name": "add", "arguments": {"a": 2}, "parameters"} functions.add commentary json analysis final\n',
] * 4


def tokenizer_of(form: str, template: str | None = None) -> TokenizerWrapper:
    """A small byte-level tokenizer with the special tokens of a form and its template, or another."""
    own, eos, bos, others = FORMS[form]
    tokens = [token for token in (eos, bos, *others.split()) if token]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens([token for token in tokens if token not in PLAIN_WORDS])
    core.add_tokens([token for token in tokens if token in PLAIN_WORDS])
    inner = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=eos,
        bos_token=bos or None,
        chat_template=template or own,
        clean_up_tokenization_spaces=False,
    )
    stops = {"gemma3": ["<end_of_turn>"], "gpt-oss": ["<|call|>"]}.get(form, [])
    return TokenizerWrapper(inner, eos_token_ids=[inner.convert_tokens_to_ids(token) for token in (eos, *stops)])
