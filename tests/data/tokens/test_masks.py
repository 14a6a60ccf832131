"""Which tokens count: the assistant's own, to the token, with templates of the forms that people use."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.data.tokens.spans import find_turns
from tests.data.conftest import CHATML, TEMPLATES, make_tokenizer
from tests.data.messages import bot, user
from tests.data.templates import FORMS, tokenizer_of

QUESTION, AGAIN = user("What is two and two?"), user("And now?")
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}],
}
RESULT = {"role": "tool", "name": "add", "content": "4"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
TOOL_USERS = [form for form in FORMS if form not in ("gemma3", "phi4")]


def runs(tokenizer, ids, mask) -> list[str]:
    """The text of each unbroken run of tokens that count."""
    mask = [1] * len(ids) if mask is None else mask
    edges = np.flatnonzero(np.diff([0, *mask, 0]))
    return [tokenizer.decode(ids[start:end]) for start, end in edges.reshape(-1, 2).tolist()]


def counted(tokenizer, split, side="chosen") -> list[str]:
    row = split.rows[0]
    return runs(tokenizer, row[side], row.get(f"{side}_mask"))


SEVERAL = {
    "prompt": [QUESTION],
    "chosen": [bot("It is 4."), AGAIN, bot("Paris.")],
    "rejected": [bot("No."), AGAIN, bot("No.")],
}
ENDS = {
    "qwen3": ["{}<|im_end|>", "{}<|im_end|>"],
    "llama3": ["{}<|eot_id|>", "{}<|eot_id|>"],
    "gemma3": ["{}<end_of_turn>", "{}<end_of_turn>"],
    "mistral": [" {}</s>", " {}</s>"],
    "phi4": ["{}<|im_end|>", "{}<|im_end|>"],
    "deepseek": ["{}<｜end▁of▁sentence｜>", "{}<｜end▁of▁sentence｜>"],
    "gpt-oss": ["<|channel|>final<|message|>{}<|end|>", "<|channel|>final<|message|>{}<|return|>"],
}


@pytest.mark.parametrize("form", FORMS)
def test_turns_of_the_assistant_alone_count(tokenise, form):
    tokenizer = tokenizer_of(form)
    split = tokenise([SEVERAL], tokenizer)
    for side, words in (("chosen", ("It is 4.", "Paris.")), ("rejected", ("No.", "No."))):
        assert counted(tokenizer, split, side) == [
            end.format(said) for end, said in zip(ENDS[form], words, strict=True)
        ]
    assert split.report.unmasked == 0
    row = split.rows[0]
    assert split.report.masked_tokens == row["chosen_mask"].count(0) + row["rejected_mask"].count(0)
    text = tokenizer.apply_chat_template([QUESTION, *SEVERAL["chosen"]], tokenize=False, enable_thinking=False)
    assert row["prompt"] + row["chosen"] == tokenizer.encode(text, add_special_tokens=False), "no token is lost"


CALLS = {
    "qwen3": ['<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>', "It is 4.<|im_end|>"],
    "llama3": ['{"name": "add", "parameters": {"a": 2}}<|eot_id|>', "It is 4.<|eot_id|>"],
    "mistral": ['[TOOL_CALLS] [{"name": "add", "arguments": {"a": 2}}]</s>', " It is 4.</s>"],
    "deepseek": [
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n{"a": 2}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
        "It is 4.<｜end▁of▁sentence｜>",
    ],
    "gpt-oss": [
        ' to=functions.add<|channel|>commentary json<|message|>{"a": 2}<|call|>',
        "<|channel|>final<|message|>It is 4.<|return|>",
    ],
}


@pytest.mark.parametrize("form", TOOL_USERS)
def test_calls_count_and_the_output_of_tools_does_not(tokenise, form):
    tokenizer = tokenizer_of(form)
    row = {"prompt": [QUESTION], "tools": TOOLS, "chosen": [CALL, RESULT, bot("It is 4.")], "rejected": [bot("No.")]}
    split = tokenise([row], tokenizer)
    assert counted(tokenizer, split) == CALLS[form]
    (answer,) = counted(tokenizer, split, "rejected")
    assert answer.strip() == ENDS[form][1].format("No.").strip()
    if form != "qwen3":  # which writes an empty thought before the answer and none before the call
        assert split.rows[0]["rejected_mask"] is None, "an answer of one turn counts as a whole"
    assert split.report.unmasked == 0


@pytest.mark.parametrize("form", TOOL_USERS)
def test_a_question_after_a_tool_was_used(tokenise, form):
    """Qwen3 and gpt-oss now write the earlier turns otherwise, Mistral its tools elsewhere."""
    tokenizer = tokenizer_of(form)
    chosen = [CALL, RESULT, bot("It is 4."), AGAIN, bot("Paris.")]
    split = tokenise([{"prompt": [QUESTION], "tools": TOOLS, "chosen": chosen, "rejected": [bot("No.")]}], tokenizer)
    first, second = CALLS[form]
    if form == "gpt-oss":
        second = second.replace("<|return|>", "<|end|>")
    assert counted(tokenizer, split) == [first, second, ENDS[form][1].format("Paris.")]
    assert split.report.unmasked == 0


def test_two_outputs_in_a_row(tokenise):
    tokenizer = tokenizer_of("qwen3")
    chosen = [CALL, RESULT, {**RESULT, "content": "5"}, bot("It is 4.")]
    split = tokenise([{"prompt": [QUESTION], "chosen": chosen, "rejected": [bot("No.")]}], tokenizer)
    assert counted(tokenizer, split) == CALLS["qwen3"]


THOUGHT = {**bot("It is 4."), "reasoning_content": "two and two", "thinking": "two and two"}
THINKING = {"chat_template_kwargs": {"enable_thinking": True}}


def test_a_thought_counts_unless_it_is_masked(tokenise):
    row = {"prompt": [QUESTION], "chosen": [THOUGHT], "rejected": [bot("No.")]}
    for form, thought, answer in (
        ("qwen3", "<think>\ntwo and two\n</think>\n\n", "It is 4.<|im_end|>\n"),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>two and two<|end|>",
            "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
        ),
    ):
        tokenizer = tokenizer_of(form)
        assert counted(tokenizer, tokenise([row], tokenizer, **THINKING)) == [thought + answer]
        assert counted(tokenizer, tokenise([row], tokenizer, mask_thinking=True, **THINKING)) == [answer]


def test_an_empty_thought_that_the_template_writes_never_counts(tokenise):
    """The chosen answer has a thought, so that the empty one of the other cannot belong to the prompt."""
    tokenizer = tokenizer_of("qwen3")
    row = {"prompt": [QUESTION], "chosen": [THOUGHT], "rejected": [bot("No.")]}
    split = tokenise([row], tokenizer, **THINKING)
    assert tokenizer.decode(split.rows[0]["prompt"]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(split.rows[0]["rejected"]) == "<think>\n\n</think>\n\nNo.<|im_end|>\n"
    assert counted(tokenizer, split, "rejected") == ["No.<|im_end|>\n"]
    assert counted(tokenizer, split) == ["<think>\ntwo and two\n</think>\n\nIt is 4.<|im_end|>\n"]


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_an_empty_thought_of_all_answers_belongs_to_the_prompt(tokenise, kind):
    tokenizer = tokenizer_of("qwen3")
    split = tokenise(
        [{"prompt": [QUESTION], "chosen": "It is 4.", "rejected": "No."}], tokenizer, kind=kind, **THINKING
    )
    assert tokenizer.decode(split.rows[0]["prompt"]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not any("mask" in name for name in split.rows.column_names), "no hole, no mask"
    assert split.report.masked_tokens == 0


def test_an_empty_thought_that_the_row_holds_counts(tokenise):
    tokenizer = tokenizer_of("phi4")
    split = tokenise(
        [{"prompt": [QUESTION], "chosen": "<think>\n\n</think>\n\nIt is 4.", "rejected": "No."}], tokenizer
    )
    assert counted(tokenizer, split) == ["<think>\n\n</think>\n\nIt is 4.<|im_end|>"]


def test_thoughts_of_earlier_turns_that_the_template_leaves_out(tokenise):
    tokenizer = tokenizer_of("qwen3")
    chosen = [THOUGHT, AGAIN, {**bot("Paris."), "reasoning_content": "France"}]
    row = {"prompt": [QUESTION], "chosen": chosen, "rejected": [bot("No."), AGAIN, bot("No.")]}
    thought = "<think>\nFrance\n</think>\n\n"
    assert counted(tokenizer, tokenise([row], tokenizer, **THINKING)) == [
        "It is 4.<|im_end|>",
        thought + "Paris.<|im_end|>",
    ]
    masked = tokenise([row], tokenizer, mask_thinking=True, **THINKING)
    assert counted(tokenizer, masked) == ["It is 4.<|im_end|>", "Paris.<|im_end|>"]


def test_a_thought_that_the_opening_begins(tokenise):
    """As Qwen3's thinking-only models: <think> stands in the prompt, its end in the completion."""
    template = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    tokenizer = tokenizer_of("qwen3", template)
    row = {
        "prompt": [QUESTION],
        "chosen": "<think>\ntwo\n</think>\n\nIt is 4.",
        "rejected": "<think>\nNo\n</think>\n\nNo.",
    }
    split = tokenise([row], tokenizer, mask_thinking=True)
    assert tokenizer.decode(split.rows[0]["prompt"]).endswith("assistant\n<think>\n")
    assert counted(tokenizer, split) == ["It is 4.<|im_end|>\n"]
    assert counted(tokenizer, tokenise([row], tokenizer)) == ["two\n</think>\n\nIt is 4.<|im_end|>\n"]


def test_the_key_turns_it_off(tokenise):
    tokenizer = tokenizer_of("phi4")
    split = tokenise([SEVERAL], tokenizer, assistant_only_loss=False)
    (all_of_it,) = counted(tokenizer, split)
    assert "And now?" in all_of_it and "chosen_mask" not in split.rows.column_names


def test_the_row_goes_before_the_settings(tokenise):
    tokenizer = make_tokenizer("{{ mood }} {{ enable_thinking }}\n" + CHATML)
    row = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    start = lambda *rows, **kwargs: tokenizer.decode(  # noqa: E731
        tokenise(list(rows), tokenizer, **kwargs).rows[0]["prompt"]
    ).splitlines()[0]
    assert start(row) == " False"
    glad = {"chat_template_kwargs": {"mood": "glad", "enable_thinking": True}}
    assert start(row, **glad) == "glad True"
    assert start(row | {"chat_template_kwargs": {"mood": "sad"}}, **glad) == "sad True"


def test_what_decides_tokens_is_in_the_digest(tokenise):
    tokenizer = tokenizer_of("qwen3")
    every = [{}, THINKING, {"mask_thinking": True}, {"assistant_only_loss": False}]
    assert len({tokenise([SEVERAL], tokenizer, **settings).report.digest for settings in every}) == len(every)


GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_generation_blocks_are_heeded(tokenise):
    tokenizer = tokenizer_of("qwen3", GENERATION)
    assert counted(tokenizer, tokenise([SEVERAL], tokenizer)) == ["It is 4.<|im_end|>", "Paris.<|im_end|>"]
    without_end = tokenizer_of(
        "qwen3", GENERATION.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    )
    assert counted(without_end, tokenise([SEVERAL], without_end)) == ["It is 4.", "Paris."]


def test_a_template_that_cannot_be_taken_apart_counts_the_whole_completion(tokenise):
    """It writes the last message first, so that no beginning of the conversation is one of the text."""
    tokenizer = make_tokenizer(CHATML.replace("for m in messages", "for m in messages | reverse"))
    split = tokenise([SEVERAL], tokenizer)
    assert split.report.unmasked == 1 and split.report.masked_tokens == 0
    (all_of_it,) = counted(tokenizer, split)
    assert "And now?" in all_of_it


def test_the_first_turns_may_differ(tokenise):
    """The user's own words part: they are in neither loss."""
    tokenizer = tokenizer_of("qwen3")
    start = [QUESTION, bot("It is 4.")]
    row = {"chosen": [*start, user("Why?"), bot("Paris.")], "rejected": [*start, AGAIN, bot("No.")]}
    split = tokenise([row], tokenizer)
    assert counted(tokenizer, split) == ["Paris.<|im_end|>"]
    assert counted(tokenizer, split, "rejected") == ["No.<|im_end|>"]
    assert tokenizer.decode(split.rows[0]["prompt"]).endswith("It is 4.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("longest", [12, 30, 45, 60])
@pytest.mark.parametrize("truncation", ["keep_end", "keep_start"])
def test_of_a_cut_row_something_counts(tokenise, longest, truncation):
    tokenizer = tokenizer_of("qwen3")
    start = [QUESTION, bot("It is 4.")]
    row = {"chosen": [*start, user("Why is it so?"), bot("Paris.")], "rejected": [*start, AGAIN, bot("No.")]}
    short = {"prompt": "a", "chosen": "b", "rejected": "c"}
    split = tokenise([row, short], tokenizer, max_seq_length=longest, truncation=truncation)
    if split.report.used == 2:
        first = split.rows[0]
        for side in ("chosen", "rejected"):
            assert any(first[f"{side}_mask"]) and len(first[f"{side}_mask"]) == len(first[side])
            assert len(first["prompt"]) + len(first[side]) <= longest
    else:
        assert longest <= 30 and split.report.dropped == {"longer than max_seq_length": 1}


def test_an_appended_end_counts(tokenise):
    tokenizer = make_tokenizer("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    split = tokenise([SEVERAL], tokenizer)
    assert counted(tokenizer, split)[-1].endswith("Paris.\n</s>")


def test_unpaired_rows_and_lists_have_masks(tokenise):
    tokenizer = tokenizer_of("qwen3")
    label = {"prompt": [QUESTION], "completion": SEVERAL["chosen"], "label": True}
    assert counted(tokenizer, tokenise([label], tokenizer, kind="unpaired"), "completion") == [
        "It is 4.<|im_end|>",
        "Paris.<|im_end|>",
    ]
    answers = [SEVERAL["chosen"], [bot("No.")]]
    split = tokenise([{"prompt": [QUESTION], "responses": answers, "scores": [2, 1]}], tokenizer, kind="ranked")
    row = split.rows[0]
    assert runs(tokenizer, row["completions"][0], row["completion_masks"][0]) == [
        "It is 4.<|im_end|>",
        "Paris.<|im_end|>",
    ]
    assert runs(tokenizer, row["completions"][1], row["completion_masks"][1]) == ["No.<|im_end|>\n"]


WORDS = st.text(st.sampled_from("ab é\n<>{}|"), min_size=1, max_size=8).filter(lambda text: text.strip())
TURN = st.tuples(st.sampled_from(["assistant", "user", "tool"]), WORDS)


@settings(max_examples=60)
@given(st.lists(TURN, max_size=5), WORDS, st.sampled_from(sorted({*TEMPLATES} - {"llama"})))
def test_every_turn_is_found_whatever_it_says(turns, last, name):
    """With templates that write every turn as it stands: each run of words lies in the span of its turn."""
    tokenizer = CACHE.setdefault(name, make_tokenizer(TEMPLATES[name]))
    messages = [user("Q"), *({"role": role, "content": words} for role, words in turns), bot(last)]

    def render(some, opening):
        return tokenizer.apply_chat_template(some, tokenize=False, add_generation_prompt=opening, enable_thinking=False)

    text = render(messages, False)
    specials = ["<|im_end|>", "</s>"]
    found = find_turns(render, messages, 1, text, specials)
    own = [message["content"] for message in messages[1:] if message["role"] == "assistant"]
    if found is None:
        assert name == "empty_think", "only a template that writes the last turn otherwise may be uncertain"
        return
    spans = [text[slice(*turn.body)] for turn in found]
    assert len(spans) == len(own)
    for span, words in zip(spans, own, strict=True):
        assert span.removesuffix("<|im_end|>").removesuffix("</s>") in (words, words + "\n")
        assert "<|im_start|>" not in span


def test_a_turn_with_the_words_of_the_last_is_not_taken_for_it():
    """The template writes an empty thought before the last turn alone, also where only the first one is rendered."""
    tokenizer = make_tokenizer(TEMPLATES["empty_think"])
    messages = [user("Q"), bot("a"), bot("a")]

    def render(some, opening):
        return tokenizer.apply_chat_template(some, tokenize=False, add_generation_prompt=opening, enable_thinking=False)

    text = render(messages, False)
    found = find_turns(render, messages, 1, text, ["<|im_end|>"])
    assert found is None or [text[slice(*turn.body)] for turn in found] == ["a<|im_end|>"] * 2


CACHE: dict = {}
