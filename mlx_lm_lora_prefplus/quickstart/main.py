"""The quick start: make a small world, train on it with the host's command, and measure whether training worked."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import batch_generate, load
from mlx_lm.sample_utils import make_sampler

from ..host.tools.doctor import examine
from . import files, world
from .commands import next_commands
from .model import encode, make_model

MOST_BEFORE, LEAST_AFTER = 0.5, 0.8
"""Bounds on the share of courteous answers before and after training: the preference must be new, and learned well."""

ANSWERS_PER_PROMPT = 4
TEMPERATURE = 0.7
SAMPLE_SEED = 0
LONGEST_ANSWER = 32  # tokens
PRINTED_SAMPLES = 4


def run_quickstart(folder: Path) -> int:
    """Make the small world in `folder`, train on it and check the result.

    Returns the exit code. It is 0 if the share of courteous answers was at most 0.5 before training and is at least 0.8
    after it; otherwise 1. Raises UserError if `folder` contains other files.
    """
    started = time.perf_counter()
    folder = folder.expanduser().resolve()
    files.claim(folder)
    config = files.write_inputs(folder)
    _prepare_model(folder)
    prompts = [row["prompt"] for row in world.preferences(files.DATA_SEED)["test"]]
    print(f"\nAsking the model {len(prompts)} held-out questions, {ANSWERS_PER_PROMPT} times each …", flush=True)
    answers_before = _answers(folder / "model", None, prompts)

    command = _command(config)
    print(f"\nTraining. The command is:\n\n    {shlex.join(command)}\n", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        print(f"\n[ERROR] The training command ended with exit code {code}; see its output above.", file=sys.stderr)
        return 1

    answers_after = _answers(folder / "model", folder / "adapters", prompts)
    questions = [prompt for prompt in prompts for _ in range(ANSWERS_PER_PROMPT)]
    before, after = world.score(questions, answers_before), world.score(questions, answers_after)
    _print_samples(questions, answers_before, answers_after)
    result = {
        "before": before.courteous,
        "after": after.courteous,
        "right_before": before.right,
        "right_after": after.right,
        "seconds": round(time.perf_counter() - started, 1),
        "command": shlex.join(command),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return _verdict(folder, result)


def _prepare_model(folder: Path) -> None:
    """Make the model, or use the one that an earlier run finished."""
    if files.has_model(folder):
        print(f"Using the small model of an earlier run: {folder / 'model'}")
        return
    print("Training a small model that knows 80 facts about animals and answers bluntly …", flush=True)
    make_model(folder / "model")
    files.mark(folder, model=True)


def _command(config: Path) -> list[str]:
    """Return the host's own command if it knows this package's modes, else the one that needs no start-up hook."""
    if examine()["active"]:
        return [sys.executable, "-m", "mlx_lm_lora.train", "--config", str(config)]
    print(
        "\n[WARNING] mlx_lm_lora.train does not know our modes in this environment "
        "(run `mlx_lm_lora.prefplus doctor` for the reason). Continuing without the start-up hook."
    )
    return [sys.executable, "-m", "mlx_lm_lora_prefplus", "train", "--config", str(config)]


def _answers(model_folder: Path, adapters: Path | None, prompts: list[str]) -> list[str]:
    """Return `ANSWERS_PER_PROMPT` sampled answers per prompt, generated in parallel by mlx_lm with its defaults."""
    model, tokenizer = load(str(model_folder), adapter_path=str(adapters) if adapters else None)[:2]
    tokens = [encode(tokenizer, prompt) for prompt in prompts for _ in range(ANSWERS_PER_PROMPT)]
    mx.random.seed(SAMPLE_SEED)
    sampler = make_sampler(temp=TEMPERATURE)
    return batch_generate(model, tokenizer, tokens, max_tokens=LONGEST_ANSWER, sampler=sampler).texts


def _print_samples(prompts: list[str], before: list[str], after: list[str]) -> None:
    """Print a few questions with the answers before and after training."""
    print("\nA few answers to questions that were not in the training data:")
    step = max(1, len(prompts) // PRINTED_SAMPLES)
    for prompt, old, new in list(zip(prompts, before, after, strict=True))[::step][:PRINTED_SAMPLES]:
        print(f"\n  {prompt}\n    before: {old.strip()}\n    after:  {new.strip()}")


def _verdict(folder: Path, result: dict[str, Any]) -> int:
    """Print the shares and what to do next. Returns the exit code."""
    print(f"\n{'share of answers that are':<28}{'before':>8}{'after':>8}")
    print(f"{'  courteous (what we asked)':<28}{result['before']:>8.0%}{result['after']:>8.0%}")
    print(f"{'  right':<28}{result['right_before']:>8.0%}{result['right_after']:>8.0%}")
    print(f"\nDone in {result['seconds']:.0f} s; the results are in {folder / 'result.json'}.")
    wrong = []
    if result["before"] > MOST_BEFORE:
        wrong.append(f"the model was already courteous ({result['before']:.0%}, at most {MOST_BEFORE:.0%} expected)")
    if result["after"] < LEAST_AFTER:
        wrong.append(f"training did not make it so ({result['after']:.0%}, at least {LEAST_AFTER:.0%} expected)")
    if wrong:
        print(
            f"\n[ERROR] The quick start failed: {' and '.join(wrong)}. Please report this with the output above "
            "and that of `mlx_lm_lora.prefplus doctor`.",
            file=sys.stderr,
        )
        return 1
    print("\nNext:")
    for purpose, command in next_commands(folder):
        print(f"\n  {purpose}\n    {command}")
    return 0
