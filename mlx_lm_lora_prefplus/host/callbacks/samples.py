"""At each evaluation, complete some validation prompts with the policy and with its reference."""

import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm import generate
from mlx_lm.tuner.callbacks import TrainingCallback

from ...engine.files.metrics_file import Logger
from ...engine.model.adapters import adapter_layers, adapters_off
from ...report.results.runs import SAMPLES
from ...storage.atomic import RESUME, explained, whole_file


class Samples(TrainingCallback):
    """Appends greedy completions to `samples.jsonl` in the adapter folder.

    Each line has `iteration`, `prompt`, `policy` and `reference`, as text. `reference` comes from the model without its
    adapters. With full fine-tuning, it comes from the model before the first step.

    prompts: the token ids of each prompt. tokens: the largest number of tokens of a completion.
    resumed: whether the run resumes from a state. A resumed run reuses the reference completions in the file.
    wrapped_callback: called before this one. loggers: receive each sample.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        resumed: bool = False,
        wrapped_callback: Any = None,
        loggers: Sequence[Logger] = (),
    ):
        self.file, self.model, self.tokenizer, self.tokens = folder / SAMPLES, model, tokenizer, tokens
        self.prompts = {tokenizer.decode(list(ids)): list(ids) for ids in prompts}
        self.wrapped_callback = wrapped_callback
        self.resumed, self.loggers = resumed, loggers

    @cached_property
    def references(self) -> dict[str, str]:
        """Return prompt → completion of the reference, for the prompts that have one."""
        lines = _readable(self.file, None) if self.resumed else []
        return {sample["prompt"]: sample["reference"] for sample in map(json.loads, lines)}

    def on_train_loss_report(self, train_info: dict) -> None:
        """Forward the report to the wrapped callback."""
        if self.wrapped_callback:
            self.wrapped_callback.on_train_loss_report(train_info)

    def on_val_loss_report(self, val_info: dict) -> None:
        """Complete the prompts and append the samples.

        Raises:
            UserError: The file cannot be written.
        """
        if self.wrapped_callback:
            self.wrapped_callback.on_val_loss_report(val_info)
        training = self.model.training
        self.model.eval()
        try:
            rows = [self._sample(val_info["iteration"], text) for text in self.prompts]
        finally:
            self.model.train(training)
        with explained(self.file, RESUME), self.file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for logger in self.loggers:
            logger.samples(rows)

    def _sample(self, iteration: int, text: str) -> dict[str, Any]:
        policy = self._complete(text)
        if text not in self.references:
            adapted = bool(adapter_layers(self.model))
            available = adapted or not self.resumed
            with adapters_off(self.model) if adapted else nullcontext():
                self.references[text] = self._complete(text) if available else ""
        return {"iteration": iteration, "prompt": text, "policy": policy, "reference": self.references[text]}

    def _complete(self, text: str) -> str:
        return generate(self.model, self.tokenizer, self.prompts[text], max_tokens=self.tokens)


def keep_samples(folder: Path, validated: int) -> None:
    """Remove samples of iterations after `validated`, because the resumed run will write them again.

    validated: the iteration of the last evaluation before the saved state. 0 if there was none; all samples then belong
        to another run and are removed.
    """
    file = folder / SAMPLES
    if file.is_file():
        lines = _readable(file, validated)
        with whole_file(file, RESUME) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


def _readable(file: Path, last: int | None) -> list[str]:
    """Return the lines up to the first incomplete one, without samples of iterations after `last`."""
    lines = []
    try:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            sample = json.loads(line)
            fields = sample["iteration"], sample["prompt"], sample["reference"]
            lines += [line] if last is None or fields[0] <= last else []
    except (OSError, ValueError, TypeError, KeyError):
        pass  # the file is absent, or a line is incomplete because the run was killed
    return lines


def first_prompts(rows: Iterable[Any], count: int) -> list[list[int]]:
    """Return the first `count` distinct prompts of the rows, as token ids."""
    prompts: dict[tuple[int, ...], None] = {}
    for row in rows:
        if len(prompts) == count:
            break
        prompts[tuple(row["prompt"])] = None
    return [list(ids) for ids in prompts]
