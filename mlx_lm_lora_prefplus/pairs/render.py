"""The summary of `pairs` on the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..report.results.intervals import against, percent

MANY_CUT_OFF = 0.1
"""Warn if at least this share of the better answers was cut off at `max_tokens`."""


def lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a summary, warnings last."""
    prompts, answers, pairs = summary["prompts"], summary["answers"], summary["pairs"]
    read, distinct = sum(prompts["rows"].values()), sum(prompts["distinct"].values())
    yield f"Prompts   {_splits(prompts['distinct'])} different, of {read:,} rows ({prompts['duplicates']:,} repeat one)"
    for reason, rows in prompts["dropped"].items():
        yield f"          left out: {rows:,} rows, {reason}"
    yield (
        f"Answers   {answers['n']:,}, {answers['different']:,} of them different texts; {answers['empty']:,} empty; "
        f"{answers['cut_off']:,} cut off at max_tokens"
    )
    yield f"          tokens: {_spread(answers['tokens'])}"
    for name, spread in summary["scores"].items():
        if name != "all" and len(summary["scores"]) == 2:
            continue  # a single reward equals the total score, so it has no line
        yield f"Scores    {name if name != 'all' else 'in all'}: {_spread(spread)}"
    usable = sum(pairs["usable"].values())
    yield f"Pairs     {usable:,} of {distinct:,} prompts give a pair: {_splits(pairs['usable']) if usable else 'none'}"
    for reason, rows in pairs["refused"].items():
        yield f"          refused: {rows:,} prompts, {reason}"
    if pairs["margin"]:
        yield f"          score of the better minus the worse answer: {_spread(pairs['margin'])}"
        yield f"          the best answer scores {pairs['best_of']:.3g} above the mean"
    if summary["judge_decided"] is not None:
        yield f"Judge     the same winner in both orders: {summary['judge_decided']:.0%} of the comparisons"
    if length := summary["length"]:
        yield (
            f"Length    the better answer is the longer one in {percent(length['better_is_longer'])} of the pairs; "
            f"{length['better']:.0f} and {length['worse']:.0f} tokens on average"
        )
    yield from (f"[WARNING] {text}" for text in warnings(summary))


def warnings(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield warnings that the user should read before training on the rows."""
    answers, pairs, length = summary["answers"], summary["pairs"], summary["length"]
    if answers["different"] <= answers["n"] / 2:
        yield (
            f"only {answers['different']:,} of {answers['n']:,} answers differ from other answers to the same prompt. "
            "Raise temperature or top_p."
        )
    if not sum(pairs["usable"].values()):
        yield "no prompt gives a pair, so there is nothing to train on. The reasons are listed above."
        return
    if length is None:
        return
    if length["better_cut_off"] > MANY_CUT_OFF:
        yield (
            f"{length['better_cut_off']:.0%} of the better answers were cut off at max_tokens. Training on them "
            "teaches the model not to end its answers. Raise max_tokens, or set missing_eos_penalty."
        )
    side = against(length["better_is_longer"], 0.5)
    if side:
        yield (
            f"the better answer is mostly the {'longer' if side > 0 else 'shorter'} one "
            f"({percent(length['better_is_longer'])}), so training also changes the length. To avoid that, add "
            "the reward length:MIN-MAX, or train with a loss that corrects for length: simpo, or dpo with r_dpo or "
            "ld_alpha."
        )


def _splits(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())


def _spread(values: Mapping[str, float] | None) -> str:
    if values is None:
        return "none"
    return f"mean {values['mean']:.3g}; " + ", ".join(
        f"{name} {values[name]:.3g}" for name in ("min", "25%", "50%", "75%", "max")
    )
