"""With `prompt_format: raw` every form of row becomes the token ids that TRL 1.16 makes of it (see make_trl_ids.py)."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from tests.corners import holds_at_every

ORACLE = json.loads((Path(__file__).parent / "trl_ids.json").read_text(encoding="utf-8"))
Completions = list[tuple[list[int], list[int]]]
"""Prompt and completion of each completion of a row."""


class Case(NamedTuple):
    """What TRL made of some rows. ids: row → prompt and completion of each completion."""

    trainer: str
    tokenizer: str
    template: str
    rows: str
    max_length: int | None
    ids: list[tuple[int, Completions]]

    def __str__(self) -> str:
        return " · ".join(map(str, self[:-1]))


CASES = [Case(*case) for case in ORACLE["cases"]]


def cases_of(trainer: str) -> list[tuple[Case]]:
    return [(case,) for case in CASES if case.trainer == trainer]


@pytest.fixture
def ours(tokenise):
    """Our rows of a case in the form that the file has: in the order of the source, a pair's desirable row first."""

    def run(case: Case) -> tuple[list, TokenizerWrapper]:
        tokenizer = tokenizer_of(case)
        split = tokenise(
            ORACLE["rows"][case.rows],
            tokenizer,
            kind="unpaired" if case.trainer == "kto" else "paired",
            add_ends=case.trainer == "cpo",
            prompt_format="raw",
            max_seq_length=case.max_length or 10**6,
            truncation="keep_prompt",
        )
        sides = ("completion",) if case.trainer == "kto" else ("chosen", "rejected")
        return [[row["row"], [[row["prompt"], row[side]] for side in sides]] for row in split.rows], tokenizer

    return run


def tells_something(row: tuple[int, Completions]) -> bool:
    """Whether truncation left completions that differ. They keep rows where it does not, which are left out here."""
    completions = [completion for _, completion in row[1]]
    return all(completions) and (len(completions) == 1 or completions[0] != completions[1])


def tokenizer_of(case: Case) -> TokenizerWrapper:
    how, core = ORACLE["tokenizers"][case.tokenizer], Tokenizer.from_str(ORACLE["tokenizer"])
    if how["adds_bos"]:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    template = ORACLE["templates"][case.template]
    return TokenizerWrapper(
        PreTrainedTokenizerFast(
            tokenizer_object=core,
            bos_token=how["bos"],
            eos_token=how["eos"],
            pad_token="<pad>",
            chat_template=template,
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["dpo", "kto"])
def test_dpo_and_kto(ours, trainer):
    """To the token, but for rows without a prompt: here one token always stands before the first scored one."""

    def same(case):
        theirs = sorted(filter(tells_something, case.ids), key=lambda one: one[0])  # KTO: all chosen rows first
        made, _ = ours(case)
        assert [number for number, _ in made] == [number for number, _ in theirs]
        for (_, mine), (_, other) in zip(made, theirs, strict=True):
            for (prompt, completion), (their_prompt, their_completion) in zip(mine, other, strict=True):
                assert prompt == (their_prompt or prompt[:1])
                assert completion == their_completion

    holds_at_every(cases_of(trainer), same)


def test_cpo_and_orpo(ours):
    """The same ids, but for what stays theirs: see `as_theirs`. Rows that they refuse are not refused here."""

    def same(case):
        made, tokenizer = ours(case)
        made = dict(made)
        theirs = list(filter(tells_something, case.ids))
        assert theirs and {number for number, _ in theirs} <= set(made)
        for number, other in theirs:
            for (prompt, completion), (their_prompt, their_completion) in zip(made[number], other, strict=True):
                if "tools" in case.rows:  # they leave them out
                    assert len(prompt) > len(their_prompt) and completion == their_completion[: len(completion)]
                    continue
                as_theirs(prompt, completion, their_prompt, their_completion, tokenizer)

    holds_at_every(cases_of("cpo"), same)


def as_theirs(prompt, completion, their_prompt, their_completion, tokenizer):
    """Their second EOS after a template that ends with EOS and a line break. Where the last token of the prompt merges
    with one of the two completions, their other prompt keeps it.
    """
    if not their_prompt:
        prompt = prompt[1:]
    later = len(their_prompt) - len(prompt)
    assert later in (0, 1)
    assert later == 0 or prompt + completion[:1] == their_prompt
    mine, eos = completion[later:], tokenizer.eos_token_id
    second = their_completion != mine
    assert their_completion == ([*mine, eos] if second else mine)
    assert not second or (mine[-1] != eos and eos in mine) or "</s>" in tokenizer.decode(mine)


def test_forms_and_trainers_are_all_there():
    assert {case.trainer for case in CASES} == {"dpo", "cpo", "kto"}
    assert {case.rows for case in CASES} == set(ORACLE["rows"])
    assert {case.template for case in CASES} == set(ORACLE["templates"])
    assert ORACLE["made_with"]["trl"] == "1.16.0"
