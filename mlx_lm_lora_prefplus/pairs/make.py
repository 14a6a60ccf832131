"""Make preference rows: prompts → answers → scores → rows. A killed command can be continued."""

import gc
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from tqdm import tqdm

from ..data.formats.ranked import REFUSED
from ..engine.model.digest import content_digest
from ..errors import UserError
from ..host import models, trained
from ..host.config.resolve import Resolved
from ..printing import say
from ..storage.atomic import whole_file
from ..storage.journal import GO_ON, Journal
from .policy import load_policy
from .prompts import SPLITS, Prompt, Prompts, collect
from .rows import ends, make_row
from .sample import Answer, chunk_size, sample
from .scores.score import Scorers, totals
from .settings import PairSettings
from .summary import Summary, summarise

ANSWERS, SUMMARY = "answers.jsonl", "summary.json"
ANOTHER = {"pairs": "another --output, or --overwrite", "rounds": "another adapter_path"}
"""Command → what to give in order to start again, for messages."""

SAMPLING = ("num_generations", "seeds", "temperature", "top_p", "max_tokens", "generation_batch_size")
"""The settings that determine the answers."""


@dataclass(frozen=True)
class Made:
    """The result. folder: of the rows. summary: from `summarise`. scores: split → for each prompt the scores of its
    answers. prompts: split → digest of its prompts.
    """

    folder: Path
    summary: Summary
    scores: dict[str, list[list[float]]]
    prompts: dict[str, str]


def make_pairs(
    resolved: Resolved,
    adapter: Path | None,
    scorers: Scorers,
    folder: Path,
    *,
    command: str = "pairs",
    splits: tuple[str, ...] = SPLITS,
    expected: Mapping[str, str] | None = None,
) -> Made:
    """Sample answers to the prompts of a run's data, score them, and write the rows of each split into a folder.

    adapter: folder or file of the policy's adapters; None for the model alone. scorers: with the settings. command:
        name of the command, for messages. expected: split → digest that its prompts must have (see `Made`).

    Raises:
        UserError: Settings, data or model are invalid. Answers and scores from before the error are kept.
    """
    settings = scorers.settings
    model, tokenizer = load_policy(resolved, adapter)
    found = collect(resolved, tokenizer, settings.prompts, splits)
    digests = {split: _digest([one for one in found.prompts if one.split == split]) for split in splits}
    if other := [split for split, digest in (expected or {}).items() if digests[split] != digest]:
        raise UserError(
            f"{command}: the {other[0]} prompts were changed after the first scores, so scores before and after cannot "
            f"be compared. Restore them, or give {ANOTHER[command]}."
        )
    say(f"{len(found.prompts)} prompts ({', '.join(found.formats)}), {settings.answers} answers each")
    answers = _answers(model, tokenizer, found, settings, folder, _policy_header(resolved, adapter), command)
    del model
    gc.collect()
    mx.clear_cache()
    scored = _scores(found, answers, scorers, folder, command)
    every_pair = resolved.data.pairing == "all_pairs"
    sums = [totals(settings, scorers.names, one, some) for one, some in zip(scored, answers, strict=True)]
    rows = [
        make_row(prompt, some, one, total, settings, every_pair)
        for prompt, some, one, total in zip(found.prompts, answers, scored, sums, strict=True)
    ]
    _write_rows(folder, found, rows)
    best = [ends(some, total) for some, total in zip(answers, sums, strict=True)]
    summary = summarise(found, answers, sums, rows, best, scored, settings)
    with whole_file(folder / SUMMARY, GO_ON) as file:
        file.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    scores: dict[str, list[list[float]]] = {}
    for prompt, total in zip(found.prompts, sums, strict=True):
        scores.setdefault(prompt.split, []).append(total)
    return Made(folder, summary, scores, digests)


def _digest(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(json.dumps([[one.split, one.key, one.tokens] for one in prompts]).encode()).hexdigest()[:16]


def _answers(
    model: nn.Module,
    tokenizer: Any,
    found: Prompts,
    settings: PairSettings,
    folder: Path,
    policy: Mapping[str, Any],
    command: str,
) -> list[list[Answer]]:
    """Return all answers. Those that an earlier start of the command wrote are read, and the others are sampled."""
    prompts, size = found.prompts, chunk_size(settings)
    header = {**policy, "prompts": _digest(prompts), **{key: getattr(settings, key) for key in SAMPLING}}
    journal = Journal(folder / ANSWERS, header, command, ANOTHER[command], len(prompts), size)
    answers = [[Answer(*fields) for fields in line["answers"]] for line in journal.lines]
    with _bar("Sampling", len(prompts), len(answers)) as bar:
        for start in range(len(answers), len(prompts), size):
            chunk = prompts[start : start + size]
            new = sample(model, tokenizer, chunk, settings)
            journal.append(
                {"split": prompt.split, "prompt": prompt.text, "answers": some}
                for prompt, some in zip(chunk, new, strict=True)
            )
            answers += new
            bar.update(len(chunk))
    return answers


def _scores(
    found: Prompts,
    answers: list[list[Answer]],
    scorers: Scorers,
    folder: Path,
    command: str,
) -> list[dict[str, Any]]:
    """Return the scores of all answers. Those that an earlier start of the command wrote are read, not computed.

    Each set of scorers has a separate file. A start with other scorers therefore does not overwrite these scores.
    """
    given = hashlib.sha256(json.dumps(answers).encode()).hexdigest()
    header = {"scorers": scorers.names, "digest": scorers.digest, "answers": given[:16]}
    name = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:8]
    journal = Journal(folder / f"rewards-{name}.jsonl", header, command, ANOTHER[command], len(answers))
    scored = list(journal.lines)
    if len(scored) < len(answers):
        scorers.load()
    with _bar("Scoring", len(answers), len(scored)) as bar:
        for place in range(len(scored), len(answers)):
            scored.append(scorers(found.prompts[place], answers[place]))
            journal.append(scored[-1:])
            bar.update(1)
    return scored


def _write_rows(folder: Path, found: Prompts, rows: list[dict[str, Any]]) -> None:
    """Write the rows of each split. The file of a split that has no rows now is removed, if an earlier start wrote it.

    If no row can be used, `valid` and `test` are not written, because training could not read them.
    """
    for split in SPLITS:
        file = folder / f"{split}.jsonl"
        lines = [row for prompt, row in zip(found.prompts, rows, strict=True) if prompt.split == split]
        if lines and (split == "train" or any(REFUSED not in line for line in lines)):
            with whole_file(file, GO_ON) as temporary:
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        else:
            file.unlink(missing_ok=True)


def _policy_header(resolved: Resolved, adapter: Path | None) -> dict[str, Any]:
    """Return what identifies the policy: the names of model and adapters, and digests of their files if these are
    local.
    """
    settings = resolved.settings
    base = Path(settings.model)
    files = [*base.glob("*.safetensors"), base / "config.json", base / "tokenizer.json"] if base.is_dir() else []
    file = trained.adapter_file(str(adapter)) if adapter is not None else None
    return {
        "model": settings.model,
        "quantised": models.quantization(settings),
        "adapter": content_digest([file])[:16] if file else None,
        "weights": content_digest(files)[:16],
    }


def begin_anew(folder: Path) -> None:
    """Remove the files that an earlier run of `pairs` wrote into a folder."""
    for file in [folder / ANSWERS, folder / SUMMARY, *(folder / f"{split}.jsonl" for split in SPLITS)]:
        file.unlink(missing_ok=True)
    for file in folder.glob("rewards-????????.jsonl"):
        file.unlink()


def check_folder(folder: Path, command: str) -> None:
    """Raise a UserError if a folder contains rows that `pairs` did not make."""
    another = ANOTHER[command].partition(",")[0]
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{command}: {folder} is a file. Give {another}.")
    others = [folder / f"{split}.jsonl" for split in SPLITS if (folder / f"{split}.jsonl").exists()]
    if others and not (folder / ANSWERS).is_file():
        raise UserError(f"{command}: {others[0]} was not made by this command and would be replaced. Give {another}.")


def _bar(what: str, total: int, done: int) -> tqdm:
    """Show progress over prompts with the remaining time."""
    return tqdm(
        desc=what, total=total, initial=done, unit=" prompts", file=sys.stderr, disable=sys.stderr is None, ncols=100
    )
