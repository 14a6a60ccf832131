"""Rows in the forms of public preference data sets: columns and nesting as these have them, the text our own."""

from typing import Any

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from tests.data.messages import bot, read, read_one, system, user

ASKED, TOM, REX = [user("Name a cat.")], [bot("Tom")], [bot("Rex")]
WHOLE = {"chosen": ASKED + TOM, "rejected": ASKED + REX}
TEXT = {"chosen": "Tom", "rejected": "Rex"}
BRIEF = [system("Be brief.")]
EARLIER = [user("Hi"), bot("Hello")]
DEVELOPER = [{"role": "developer", "content": "Be brief."}]


def call(minutes: int) -> list[dict]:
    function = {"name": "start_timer", "arguments": {"minutes": minutes}}
    return [{"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}]


TIMER = {"type": "function", "function": {"name": "start_timer"}}

PAIRS: dict[str, tuple[dict[str, Any], list[dict]]] = {
    # TRL: trl-internal-testing/zen, toolcall and harmony; trl-lib/hh-rlhf-helpful-base, tldr-preference
    "conversational": ({"prompt": ASKED, "chosen": TOM, "rejected": REX}, ASKED),
    "conversational, implicit prompt": (WHOLE, ASKED),
    "hh-rlhf-helpful-base": ({"prompt": [*EARLIER, *ASKED], "chosen": TOM, "rejected": REX}, [*EARLIER, *ASKED]),
    "harmony": (
        {
            "prompt": [*DEVELOPER, *ASKED],
            "chosen": [{"role": "assistant", "thinking": "Cats are called so.", "content": "Tom"}],
            "rejected": [{"role": "assistant", "thinking": "It may be a dog.", "content": "Rex"}],
            "chat_template_kwargs": {"reasoning_effort": "low"},
        },
        [*DEVELOPER, *ASKED],
    ),
    "a developer's turn in whole conversations": (
        {"prompt": "Name a cat.", "chosen": [*DEVELOPER, *ASKED, *TOM], "rejected": [*DEVELOPER, *ASKED, *REX]},
        [*DEVELOPER, *ASKED],
    ),
    # HuggingFaceH4/ultrafeedback_binarized
    "ultrafeedback_binarized": (
        {**WHOLE, "prompt": "Name a cat.", "prompt_id": "a1", "messages": ASKED + TOM, "score_chosen": 8.5},
        ASKED,
    ),
    "messages is the chosen conversation once more": ({**WHOLE, "messages": ASKED + TOM}, ASKED),
    # argilla/ultrafeedback-binarized-preferences-cleaned
    "ratings with a hyphen": (
        {
            **WHOLE,
            "source": "s",
            "prompt": "Name a cat.",
            "chosen-rating": 4.5,
            "chosen-model": "m",
            "rejected-rating": 1,
        },
        ASKED,
    ),
    # argilla/dpo-mix-7k, trl-lib/Capybara-Preferences
    "a system turn in both": (
        {"dataset": "d", "chosen": BRIEF + ASKED + TOM, "rejected": BRIEF + ASKED + REX, "chosen_rating": 4.5},
        BRIEF + ASKED,
    ),
    # argilla/distilabel-capybara-dpo-7k-binarized: `prompt` is the last question alone
    "capybara": (
        {
            "conversation": [{"input": "Hi", "output": "Hello"}, {"input": "Name a cat.", "output": None}],
            "prompt": "Name a cat.",
            "chosen": EARLIER + ASKED + TOM,
            "rejected": EARLIER + ASKED + REX,
            "rating_chosen": 5,
        },
        EARLIER + ASKED,
    ),
    # mlabonne/orpo-dpo-mix-40k
    "an empty question beside the prompt": ({**WHOLE, "prompt": "Name a cat.", "question": None}, ASKED),
    # princeton-nlp/llama3-ultrafeedback-armorm
    "all responses with their scores beside": (
        {**WHOLE, "prompt": "Name a cat.", "all_generated_responses": ["Tom", "Rex"], "all_rm_scores": [0.2, 0.1]},
        ASKED,
    ),
    # HumanLLMs/Human-Like-DPO-Dataset
    "text": ({"prompt": "Name a cat.", **TEXT}, ASKED),
    # Intel/orca_dpo_pairs
    "system and question": ({"system": "Be brief.", "question": "Name a cat.", **TEXT}, BRIEF + ASKED),
    "an empty system": ({"system": "", "question": "Name a cat.", **TEXT}, ASKED),
    # argilla/distilabel-intel-orca-dpo-pairs
    "system and input": (
        {
            **{"system": "Be brief.", "input": "Name a cat.", **TEXT, "generations": ["Rex", "Tom"]},
            **{"order": ["rejected", "chosen"], "labelling_prompt": [user("Rate them.")], "rating": [2.0, 9.0]},
            **{"status": "swapped", "original_chosen": "Rex", "original_rejected": "Tom", "chosen_score": 9.0},
        },
        BRIEF + ASKED,
    ),
    # argilla/distilabel-math-preference-dpo, ultrafeedback-binarized-preferences
    "chosen_response": (
        {
            "metadata": "m",
            "instruction": "Name a cat.",
            "chosen_response": "Tom",
            "rejected_response": "Rex",
            "chosen_rating": 9.0,
            "rejected_rating": None,
        },
        ASKED,
    ),
    # nvidia/HelpSteer2 (preference), nvidia/HelpSteer3
    "HelpSteer2": (
        {"prompt": "Name a cat.", "response_1": "Rex", "response_2": "Tom", "preference_strength": 2, "split": "train"},
        ASKED,
    ),
    "HelpSteer3": (
        {
            "domain": "general",
            "context": [*EARLIER, *ASKED],
            "response1": "Tom",
            "response2": "Rex",
            "overall_preference": -2,
            "individual_preference": [{"score": -2, "reasoning": "Tom is a cat."}],
        },
        [*EARLIER, *ASKED],
    ),
}


def content(completion: Any) -> str:
    return completion[-1]["content"]


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    row, prompt = PAIRS[name]
    for kind in ("paired", "unpaired", "ranked"):
        example = read_one(row, kind=kind)
        assert example.prompt == prompt, kind
        assert [content(completion) for completion in example.completions] == ["Tom", "Rex"], kind
        assert all(len(completion) == 1 for completion in example.completions), kind


@pytest.mark.parametrize(
    ("row", "prompt", "label"),
    [
        # trl-lib/kto-mix-14k, ultrafeedback-gpt-3.5-turbo-helpfulness
        ({"prompt": ASKED, "completion": TOM, "label": True}, ASKED, 1),
        # argilla/distilabel-intel-orca-kto
        (
            {"system": "Be brief.", "prompt": "Name a cat.", "completion": "Tom", "label": False, "rating": 2.0},
            BRIEF + ASKED,
            0,
        ),
    ],
)
def test_unpaired(row, prompt, label):
    example = read_one(row, kind="unpaired")
    assert (example.prompt, content(example.completions[0]), example.scores) == (prompt, "Tom", [label])


def test_calls_of_tools():
    """As trl-internal-testing/toolcall: the answer is a call, without a content."""
    row = {"prompt": ASKED, "chosen": call(10), "rejected": call(1), "tools": [TIMER]}
    example = read_one(row)
    assert example.tools == [TIMER]
    minutes = [answer[0]["tool_calls"][0]["function"]["arguments"]["minutes"] for answer in example.completions]
    assert minutes == [10, 1]


def test_a_prompt_with_an_image_is_refused_in_words():
    """As trl-lib/rlaif-v: the model would be asked of a picture that it does not see."""
    look = [user([{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}])]
    answers = [[bot([{"type": "text", "text": text}])] for text in ("A cat.", "A dog.")]
    with pytest.raises(UserError, match=r"row 1, column 'prompt': .*images and sound cannot be read"):
        read({"prompt": look, "chosen": answers[0], "rejected": answers[1]})


@pytest.mark.parametrize("picture", [{"images": ["a.png"]}, {"image": {"bytes": None, "path": "a.png"}}])
def test_a_row_with_a_picture_is_refused_wherever_it_is(picture):
    """As openbmb/RLHF-V-Dataset: the prompt is text, and the picture a column of its own."""
    plain = [{**TEXT, "prompt": "Name a cat."}] * 150
    with pytest.raises(UserError, match="row 151: column 'image.*' contains a picture"):
        read(*plain, {**plain[0], **picture})


def test_empty_columns_of_pictures_change_nothing():
    row = {**TEXT, "prompt": "Name a cat."}
    assert read_one({**row, "images": [], "image": None}) == read_one(row)


def test_a_prompt_that_is_named_stays_one():
    """`messages` may end with an answer where the settings say that it is the prompt."""
    row = {"messages": ASKED + TOM, "chosen": [user("More."), *TOM], "rejected": [user("More."), *REX]}
    assert read_one(row, prompt_feature="messages").prompt == [*ASKED, *TOM, user("More.")]
