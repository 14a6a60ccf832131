"""Template, boundary, BOS, EOS and truncation: proved on tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.data.tokens.truncation import fit
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.settings import DataSettings
from tests.data.conftest import CHATML, HOST_FALLBACK, LLAMA, PAIR, STRICT, TEMPLATES, make_tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chosen", ["A cat.", " A cat", "Paris is it", "\nassistant", "é🙂"])
def test_prompt_and_completion_put_together_are_the_rendered_conversation(tokenise, name, chosen):
    tokenizer = make_tokenizer(TEMPLATES[name])
    row = tokenise([{**PAIR, "chosen": chosen}], tokenizer).rows[0]
    for key, answer in (("chosen", chosen), ("rejected", PAIR["rejected"])):
        conversation = [
            {"role": "user", "content": PAIR["prompt"]},
            {"role": "assistant", "content": answer},
        ]
        text = tokenizer.apply_chat_template(conversation, tokenize=False, enable_thinking=False)
        whole = tokenizer.encode(text, add_special_tokens=False)
        assert row["prompt"] + row[key] == whole
        assert answer.strip() in tokenizer.decode(row[key])  # no token of the answer is lost to the prompt


@pytest.mark.parametrize(
    ("name", "prompt", "chosen"),
    [
        ("chatml", "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n", "A cat.<|im_end|>\n"),
        ("llama", "<s>[INST] What is it? [/INST]", " A cat.</s>"),
        (
            "empty_think",
            "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "A cat.<|im_end|>\n",
        ),
        ("open_think", "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n", "A cat.<|im_end|>\n"),
    ],
)
def test_boundary_text_of_each_template(tokenise, name, prompt, chosen):
    tokenizer = make_tokenizer(TEMPLATES[name])
    row = tokenise([PAIR], tokenizer).rows[0]
    assert tokenizer.decode(row["prompt"]) == prompt
    assert tokenizer.decode(row["chosen"]) == chosen


def test_a_tokenizer_with_one_number_for_its_ends(tokenise, chatml):
    """transformers' own tokenizers may say so; mlx_lm's wrapper has a set."""
    plain = make_tokenizer()._tokenizer
    plain.eos_token_ids = plain.eos_token_id
    assert list(tokenise([PAIR], plain).rows) == list(tokenise([PAIR], chatml).rows)


def test_host_fallback_keeps_the_first_answer_token(tokenise):
    """The opening "assistant: " ends in a blank that merges with the answer: counting it loses " I am"."""
    tokenizer = make_tokenizer(HOST_FALLBACK)
    opening = tokenizer.encode("user: What is it?\nassistant: ", add_special_tokens=False)
    row = tokenise([{**PAIR, "chosen": "I am here.", "rejected": "You are there."}], tokenizer).rows[0]
    assert row["prompt"] != opening and row["prompt"] == opening[: len(row["prompt"])]
    assert tokenizer.decode(row["chosen"]) == " I am here.</s>\n"


def test_shared_first_words_of_the_answers_stay_in_the_completions(tokenise, chatml):
    row = tokenise([{**PAIR, "chosen": "It is a cat.", "rejected": "It is a dog."}]).rows[0]
    assert chatml.decode(row["chosen"]).startswith("It is a cat")
    assert chatml.decode(row["rejected"]).startswith("It is a dog")


@pytest.mark.parametrize(
    ("template", "own_bos", "add_bos", "expected"),
    [
        (HOST_FALLBACK, True, True, 1),  # the template has none, the tokenizer would put one
        (HOST_FALLBACK, True, False, 0),  # the template is the model's own: it knows
        (HOST_FALLBACK, False, True, 0),  # the tokenizer would not
        (LLAMA, True, True, 1),  # the template has one: never two
        (LLAMA, True, False, 1),
    ],
)
def test_bos_is_there_once_or_not_at_all(tokenise, template, own_bos, add_bos, expected):
    tokenizer = make_tokenizer(template, bos=own_bos)
    row = tokenise([PAIR], tokenizer, add_bos=add_bos).rows[0]
    assert row["prompt"].count(tokenizer.bos_token_id) == expected
    assert not expected or row["prompt"][0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in row["chosen"] + row["rejected"]


def test_plain_text_gets_bos_and_eos_once(tokenise):
    tokenizer = make_tokenizer(HOST_FALLBACK, bos=True)
    row = tokenise([{"chosen": "Once there was a cat", "rejected": "Once there was a dog</s>"}], tokenizer).rows[0]
    assert tokenizer.decode(row["prompt"]).startswith("<s>Once there was a")
    whole = [tokenizer.decode(row["prompt"] + row[key]) for key in ("chosen", "rejected")]
    assert whole == ["<s>Once there was a cat</s>", "<s>Once there was a dog</s>"]


@pytest.mark.parametrize(("own_bos", "opening"), [(True, "<s>"), (False, "<s>")])
def test_plain_text_with_nothing_in_common_starts_from_one_token(tokenise, own_bos, opening):
    tokenizer = make_tokenizer(HOST_FALLBACK, bos=own_bos)
    row = tokenise([{"chosen": "A cat", "rejected": "The dog"}], tokenizer).rows[0]
    assert tokenizer.decode(row["prompt"]) == opening
    assert tokenizer.decode(row["chosen"]) == "A cat</s>"


def test_plain_text_that_is_the_start_of_the_other_ends_in_eos(tokenise):
    tokenizer = make_tokenizer(HOST_FALLBACK)
    row = tokenise([{"chosen": "What is", "rejected": "What is the capital"}], tokenizer).rows[0]
    assert row["chosen"][-1] == tokenizer.eos_token_id and row["rejected"][-1] == tokenizer.eos_token_id


def test_eos_is_added_where_the_template_has_none(tokenise):
    tokenizer = make_tokenizer(CHATML.replace("<|im_end|>\n", "\n"))
    row = tokenise([PAIR], tokenizer).rows[0]
    assert [row[key].count(tokenizer.eos_token_id) for key in ("chosen", "rejected")] == [1, 1]
    assert row["chosen"][-1] == tokenizer.eos_token_id


def test_eos_is_not_added_where_another_stop_token_ends_the_turn(tokenise):
    tokenizer = make_tokenizer(CHATML)
    tokenizer.eos_token = "</s>"
    tokenizer.eos_token_ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    row = tokenise([PAIR], tokenizer).rows[0]
    assert tokenizer.decode(row["chosen"]) == "A cat.<|im_end|>\n"


def test_conversations_that_open_with_different_answers(tokenise, chatml):
    """No prompt at all: what the two renderings share is the prompt."""
    turns = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    row = tokenise([{"chosen": turns("Yes"), "rejected": turns("No")}]).rows[0]
    assert chatml.decode(row["prompt"]) == "<|im_start|>assistant\n"
    assert chatml.decode(row["chosen"]) == "Yes<|im_end|>\n"


def test_tools_reach_the_template(tokenise):
    tokenizer = make_tokenizer("{% for tool in tools or [] %}{{ tool.name }}\n{% endfor %}" + CHATML)
    row = tokenise([{**PAIR, "tools": [{"name": "add"}]}], tokenizer).rows[0]
    assert tokenizer.decode(row["prompt"]).startswith("add\n<|im_start|>user")


def test_a_template_that_refuses_a_row_says_which_and_why(tokenise):
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(UserError) as error:
        tokenise([PAIR, {**PAIR, "prompt": turns}], make_tokenizer(STRICT))
    message = str(error.value)
    for part in ("rows.jsonl, row 2", "must alternate", "roles: user, user", "Change or remove the row"):
        assert part in message


def test_half_a_surrogate_pair_is_named(tokenise):
    with pytest.raises(UserError, match=r"rows.jsonl, row 2: .*half of a surrogate pair \('\\ud800'\)"):
        tokenise([PAIR, {**PAIR, "chosen": "a\ud800b"}])


def test_same_and_vanishing_completions_are_dropped(tokenise):
    same = {**PAIR, "rejected": PAIR["chosen"]}
    report = tokenise([PAIR, same, same]).report
    assert report.dropped == {"chosen and rejected are the same": 2}
    assert (report.read, report.used) == (3, 1)


def test_completions_that_a_template_leaves_out_are_dropped(tokenise):
    tokenizer = make_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'user' or 'keep' in m['content'] %}{{ m['content'] }}"
        "{% endif %}{% endfor %}"
    )
    report = tokenise(
        [{**PAIR, "chosen": "keep this"}, {**PAIR, "chosen": "keep", "rejected": "keep it"}], tokenizer
    ).report
    assert report.dropped == {"no completion left after the prompt": 1}


def ids(length: int, start: int = 0) -> list[int]:
    return list(range(start, start + length))


@pytest.mark.parametrize(
    ("lengths", "settings", "expected"),
    [
        # prompt + longer ≤ limit: nothing is cut
        ((6, 4, 3), {"max_seq_length": 10}, (6, 4, 3)),
        # 8 + 4 > 10: the prompt gives way to 10 − 4 = 6, above its floor of 5
        ((8, 4, 3), {"max_seq_length": 10}, (6, 4, 3)),
        # 8 + 7 > 10: the prompt stops at its floor 10 // 2 = 5, completions get 5
        ((8, 7, 3), {"max_seq_length": 10}, (5, 5, 3)),
        # the prompt is below its floor: it stays whole (3), completions get 7
        ((3, 9, 8), {"max_seq_length": 10}, (3, 7, 7)),
        # an own floor of 2: max(10 − 7, 2) = 3
        ((8, 7, 3), {"max_seq_length": 10, "max_prompt_length": 2}, (3, 7, 3)),
        # an own floor beyond the limit still leaves one completion token
        ((30, 20, 20), {"max_seq_length": 10, "max_prompt_length": 99}, (9, 1, 1)),
        ((30, 20, 20), {"max_seq_length": 1}, (1, 1, 1)),
    ],
)
def test_truncation_by_hand(lengths, settings, expected):
    prompt, chosen, rejected = ids(lengths[0]), ids(lengths[1], 100), ids(lengths[2], 200)
    end = fit(prompt, [chosen, rejected], DataSettings(**settings))
    start = fit(prompt, [chosen, rejected], DataSettings(truncation="keep_start", **settings))
    assert end == (prompt[len(prompt) - expected[0] :], [chosen[: expected[1]], rejected[: expected[2]]])
    assert start == (prompt[: expected[0]], [chosen[: expected[1]], rejected[: expected[2]]])


lengths = st.integers(1, 60)


@given(
    lengths,
    st.lists(lengths, min_size=1, max_size=4),
    st.integers(2, 50),
    st.one_of(st.none(), st.integers(1, 80)),
    st.booleans(),
)
def test_truncation_invariants(prompt, completions, limit, floor, keep_end):
    truncation = "keep_end" if keep_end else "keep_start"
    settings = DataSettings(max_seq_length=limit, max_prompt_length=floor, truncation=truncation)
    row = (ids(prompt), [ids(length, 100 * i) for i, length in enumerate(completions, 1)])
    cut = fit(*row, settings)
    assert cut is not None
    kept, lengths = len(cut[0]), [len(completion) for completion in cut[1]]
    longest = prompt + max(completions)
    assert kept and all(lengths)
    assert kept + max(lengths) == min(longest, limit)  # all the room is used
    assert cut[1] == [whole[:length] for whole, length in zip(row[1], lengths, strict=True)]
    assert cut[0] == (row[0][-kept:] if keep_end else row[0][:kept])
    if kept < prompt and lengths != completions:
        assert kept == min(floor or limit // 2, limit - 1) or limit // 2 == 0
    dropped = fit(*row, settings.model_copy(update={"truncation": "drop"}))
    assert dropped == (row if longest <= limit else None)


def test_truncated_rows_are_counted_and_lose_their_eos(tokenise, chatml):
    long = {**PAIR, "chosen": "x" * 50}
    split = tokenise([PAIR, long], max_seq_length=40)
    assert split.report.truncated == 1
    assert chatml.eos_token_id in split.rows[0]["chosen"] and chatml.eos_token_id not in split.rows[1]["chosen"]


def test_drop_leaves_long_rows_out(tokenise):
    report = tokenise([PAIR, {**PAIR, "chosen": "x" * 50}], max_seq_length=40, truncation="drop").report
    assert report.dropped == {"longer than max_seq_length": 1} and report.truncated == 0


def test_rows_that_differ_only_beyond_the_cut_are_dropped(tokenise):
    row = {**PAIR, "chosen": "x" * 50 + "a", "rejected": "x" * 50 + "b"}
    assert tokenise([PAIR, row], max_seq_length=40).report.dropped == {
        "chosen and rejected are the same after truncation to max_seq_length": 1
    }


def test_all_rows_dropped_names_the_reasons(tokenise):
    with pytest.raises(UserError, match=r"none of the 3 rows .* the same: 2, empty completion: 1"):
        tokenise([{**PAIR, "rejected": "A cat."}] * 2 + [{**PAIR, "chosen": None}])


def test_a_cut_prompt_still_begins_with_the_bos():
    row = ([1, 2, 3, 4, 5, 6], [[7, 8], [9]])
    settings = DataSettings(max_seq_length=5, max_prompt_length=1)
    assert fit(*row, settings, bos=1) == ([1, 5, 6], [[7, 8], [9]])
    assert fit(*row, settings, bos=2) == ([4, 5, 6], [[7, 8], [9]])
    assert fit([1, 2], [[7] * 9, [9]], DataSettings(max_seq_length=2), bos=1) == ([2], [[7], [9]])


LIST = {"prompt": "What is it?", "responses": ["It is a cat.", "It is a dog.", "Is it?"], "scores": [3, 2, 1]}


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_prompt_and_each_completion_put_together_are_the_rendered_conversation(tokenise, name):
    tokenizer = make_tokenizer(TEMPLATES[name])
    row = tokenise([LIST], tokenizer, kind="ranked").rows[0]
    assert len(row["completions"]) == 3
    for completion, answer in zip(row["completions"], LIST["responses"], strict=True):
        turns = [{"role": "user", "content": LIST["prompt"]}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False)
        assert row["prompt"] + completion == tokenizer.encode(text, add_special_tokens=False)
        assert answer in tokenizer.decode(completion)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_pair_has_the_same_tokens_as_unpaired_rows_and_as_a_list(tokenise, name):
    tokenizer = make_tokenizer(TEMPLATES[name])
    pair = tokenise([PAIR], tokenizer).rows[0]
    rows = tokenise([PAIR], tokenizer, kind="unpaired").rows
    (ranked,) = tokenise([PAIR], tokenizer, kind="ranked").rows
    assert rows.column("prompt").to_pylist() == [pair["prompt"]] * 2
    assert rows.column("completion").to_pylist() == ranked["completions"] == [pair["chosen"], pair["rejected"]]
    assert rows.column("label").to_pylist() == ranked["scores"] == [1, 0]
    assert ranked["prompt"] == pair["prompt"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_unpaired_rows_end_their_prompt_where_pairs_do(tokenise, name):
    tokenizer = make_tokenizer(TEMPLATES[name])
    pair = tokenise([PAIR], tokenizer).rows[0]
    unpaired = [{"prompt": PAIR["prompt"], "completion": PAIR[side], "label": side} for side in ("chosen", "rejected")]
    rows = tokenise(unpaired, tokenizer, kind="unpaired").rows
    assert rows.column("prompt").to_pylist() == [pair["prompt"]] * 2
    assert rows.column("completion").to_pylist() == [pair["chosen"], pair["rejected"]]


def test_plain_text_becomes_unpaired_rows_with_the_shared_start_as_prompt(tokenise):
    tokenizer = make_tokenizer(HOST_FALLBACK, bos=True)
    plain = {"chosen": "Once there was a cat", "rejected": "Once there was a dog"}
    rows = tokenise([plain], tokenizer, kind="unpaired").rows
    whole = [tokenizer.decode(row["prompt"] + row["completion"]) for row in rows]
    assert whole == ["<s>Once there was a cat</s>", "<s>Once there was a dog</s>"]
    assert rows[0]["prompt"] == rows[1]["prompt"] and len(rows[0]["prompt"]) > 3


def test_rows_made_of_a_pair_are_cut_each_for_itself(tokenise):
    """The chosen completion is too long; the rejected one is not, and nothing of its row is lost."""
    pair = {**PAIR, "prompt": "What is it? " * 9, "chosen": "x" * 50}
    split = tokenise([pair], kind="unpaired", max_seq_length=80)
    together = tokenise([pair], max_seq_length=80).rows[0]
    whole = tokenise([pair]).rows[0]
    assert split.report.truncated == 1
    assert split.rows[0]["prompt"] == together["prompt"] != whole["prompt"]
    assert split.rows[0]["completion"] == together["chosen"]
    assert (split.rows[1]["prompt"], split.rows[1]["completion"]) == (whole["prompt"], whole["rejected"])
    dropped = tokenise([pair], kind="unpaired", max_seq_length=80, truncation="drop")
    assert dropped.report.dropped == {"longer than max_seq_length": 1}
    assert dropped.rows.column("label").to_pylist() == [0]


def test_completions_that_a_template_leaves_out_leave_the_list(tokenise):
    """The question is all that is rendered of the second. The others' prompt does not end earlier for it."""
    tokenizer = make_tokenizer(
        "{% for m in messages %}{% if 'x' in m['content'] %}{{ m['role'] }}:{{ m['content'] }}</s>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    row = {"prompt": "x?", "responses": ["x one", "two", "x three"], "scores": [3, 2, 1]}
    split = tokenise([row, {**row, "responses": ["x one", "two", "three"]}], tokenizer, kind="ranked")
    assert split.rows.column("scores").to_pylist() == [[3, 1]]
    completions = [tokenizer.decode(ids) for ids in split.rows[0]["completions"]]
    assert completions == ["x one</s>", "x three</s>"]
    assert split.report.dropped == {"no completion left after the prompt": 1}
    with pytest.raises(UserError, match="tie: 1"):
        tokenise([{**row, "scores": [2, 3, 2]}], tokenizer, kind="ranked")


def test_same_completions_in_a_list(tokenise):
    same = {**LIST, "responses": ["A", "A", "A"]}
    split = tokenise([{**LIST, "responses": ["A", "B", "A"]}, same], kind="ranked")
    assert split.report.dropped == {"all completions are the same": 1}
    assert split.rows.column("scores").to_pylist() == [[3, 2, 1]]


def test_half_a_surrogate_pair_in_a_list_is_named(tokenise):
    with pytest.raises(UserError, match=r"rows.jsonl, row 1: .*half of a surrogate pair \('\\ud800'\)"):
        tokenise([{**LIST, "responses": ["a", "b", "c\ud800"]}], kind="ranked")
