"""Alternate making pairs and training, in one folder per round. A killed command can be continued."""

import gc
import json
import shutil
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..engine.files.names import CONFIG as ADAPTER_CONFIG
from ..errors import UserError
from ..host.config.command_line import settings_of
from ..host.config.names import near
from ..host.config.resolve import Resolved
from ..host.run.run import run as train
from ..pairs.make import Made, check_folder, make_pairs
from ..pairs.next_step import CONFIG, given_values, write_config
from ..pairs.policy import adapter_of
from ..pairs.prompts import SPLITS
from ..pairs.render import lines
from ..pairs.scores.score import Scorers
from ..printing import say
from ..report.results import intervals
from ..report.results.rounds import ROUNDS, Record
from ..report.rounds import score_text
from ..settings import COMPANION_KEYS
from ..storage.atomic import whole_file
from ..storage.journal import GO_ON

ADAPTERS = "adapters.safetensors"
SEEDS_APART = 1_000_003
"""The seeds of consecutive rounds differ by this much, so that no two rounds draw the same random numbers."""

REFERENCES = ("initial", "previous")
DEFAULT_ROUNDS = 3
BOOTSTRAP_SEED = 0

DIGITS = 9
"""Gains are rounded to this many decimals, so that equal scores do not differ by 1e-17."""


class Plan(NamedTuple):
    """rounds: how many. reference: "initial" (the policy before round 1) or "previous" (the policy at the start of each
    round).
    """

    rounds: int
    reference: str


def plan_of(resolved: Resolved, rounds: Any, reference: Any) -> Plan:
    """Check the keys `rounds` and `round_reference`. The command line takes precedence over the file.

    Raises:
        UserError: A value is invalid, or a key is spelt almost like one of these.
    """
    for key in resolved.values:
        match = near(key, COMPANION_KEYS)
        if match and match.sure and key not in COMPANION_KEYS:
            raise UserError(f"rounds: {key} is not a key; did you mean {match.name}?")
    count = resolved.values.get("rounds", DEFAULT_ROUNDS) if rounds is None else rounds
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1000:
        raise UserError(f"rounds: {count!r:.40} is not valid. Give a whole number from 1 to 1000, such as 3.")
    which = resolved.values.get("round_reference", "initial") if reference is None else reference
    if which not in REFERENCES:
        raise UserError(
            f"round_reference: {which!r:.40} is not one of {', '.join(REFERENCES)}. initial keeps the reference of the "
            "first round; previous uses the policy at the start of each round."
        )
    if which == "previous" and not resolved.needs_reference:
        raise UserError(
            f"round_reference: mode {resolved.trainer.mode} has no reference with these options. Remove it, or use "
            "mode dpo."
        )
    if which == "previous" and resolved.settings.train_type == "full":
        raise UserError("round_reference: previous needs adapters. Set train_type: lora, or round_reference: initial.")
    return Plan(count, which)


def run_rounds(resolved: Resolved, scorers: Scorers, plan: Plan) -> Record:
    """Run the remaining rounds, and put the adapters of the last one into the adapter folder.

    Raises:
        UserError: Settings, data or model are invalid. Results so far are kept.
    """
    folder = Path(resolved.settings.adapter_path)
    policy = adapter_of(resolved, None)
    record = _begin(folder, resolved, scorers, plan)
    for number in range(1, plan.rounds + 1):
        here = folder / f"round-{number}"
        if number > len(record["rounds"]):
            say(f"\nRound {number} of {plan.rounds}: sampling and scoring")
            made = _make(resolved, policy, scorers, here / "pairs", number, SPLITS, record)
            for line in lines(made.summary):
                say(line)
            _keep_scores(folder, record, _held_out(made), made, number - 1)
            if not made.summary["pairs"]["usable"].get("train"):
                say(f"Round {number}: no training prompt gives a pair. The rounds end here.")
                break
            say(f"Round {number} of {plan.rounds}: training on {made.summary['pairs']['usable']['train']} prompts")
            _train(resolved, policy, here, plan)
            record["rounds"].append(
                {"folder": here.name, "pairs": made.summary["pairs"], "length": made.summary["length"]}
            )
            _write(folder, record)
        policy = here
    done = len(record["rounds"])
    if done and len(record["scores"]) <= done:
        say(f"\nAfter round {done}: sampling and scoring")
        split = record["held_out"]
        made = _make(resolved, policy, scorers, folder / "after" / f"round-{done}", done + 1, (split,), record)
        _keep_scores(folder, record, split, made, done)
    if policy is not None and done:
        _copy(folder / f"round-{done}", folder)
    return record


def _begin(folder: Path, resolved: Resolved, scorers: Scorers, plan: Plan) -> Record:
    """Read the results that a killed command left. Raise a UserError if it had other settings."""
    of_pairs = {"pairs": scorers.settings.model_dump(), "scorers": scorers.digest}
    about = json.loads(json.dumps({"reference": plan.reference, **of_pairs, "training": _training(resolved)}))
    file = folder / ROUNDS
    try:
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError as error:
        raise UserError(f"rounds: {file} is damaged ({error}). Remove it, or give another adapter_path.") from error
    if record is not None and record["about"] != about and not record["scores"]:
        record = None  # nothing was scored with the other settings
    if record is None:
        if (folder / ADAPTERS).exists():
            raise UserError(
                f"rounds: {folder} contains the adapters of another run. Give another adapter_path. To start from "
                f"these adapters, also set resume_adapter_file: {folder / ADAPTERS}."
            )
        check_folder(folder / "round-1" / "pairs", "rounds")
        record = {"about": about, "held_out": None, "scores": [], "rounds": []}
        _write(folder, record)
        return record
    if changed := _changes(record["about"], about):
        if resolved.settings.resume != "force":
            raise UserError(
                f"rounds: the rounds in {folder} have other settings: {'; '.join(changed)}. Restore them to continue, "
                "give another adapter_path, or continue anyway with resume: force."
            )
        for change in changed:
            say(f"[WARNING] resume: force continues although {change}.")
        record["about"] = about
    if len(record["rounds"]) > plan.rounds:
        raise UserError(
            f"rounds: {folder} already contains {len(record['rounds'])} rounds, more than {plan.rounds}. Give at least "
            "as many, or another adapter_path."
        )
    return record


def _changes(before: Any, now: Any) -> list[str]:
    """Describe how the settings, and the files behind the scorers, differ from those of the rounds so far."""
    whole = ({"reference": before["reference"]}, {"reference": now["reference"]})
    changed = [
        f"{key} was {old.get(key)!r:.80} and is {new.get(key)!r:.80}"
        for old, new in (whole, *((before[name], now[name]) for name in ("pairs", "training")))
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    scorers = before.get("scorers", {})
    other = [name for name, digest in now["scorers"].items() if scorers.get(name, digest) != digest]
    return changed + [f"the content of {name} was changed" for name in other]


def _training(resolved: Resolved) -> dict[str, Any]:
    """Return the user's settings that determine what is trained."""
    shown = ("adapter_path", "fuse", "resume", "report_to", "project_name", "wandb", "steps_per_report", "save_every")
    given = {key: value for key, value in given_values(resolved).items() if key not in shown}
    return {**given, "train_mode": resolved.trainer.mode, "data": resolved.data.data}


def _make(
    resolved: Resolved,
    policy: Path | None,
    scorers: Scorers,
    folder: Path,
    number: int,
    splits: tuple[str, ...],
    record: Record,
) -> Made:
    scorers = copy(scorers)  # the models that it loads are freed with it
    seeds = [seed + (number - 1) * SEEDS_APART for seed in scorers.settings.seeds]
    scorers.settings = scorers.settings.model_copy(update={"seeds": seeds})
    return make_pairs(
        resolved, policy, scorers, folder, command="rounds", splits=splits, expected=record.get("prompts")
    )


def _held_out(made: Made) -> str:
    """Return the split whose prompts are used for evaluation: test, else valid, else train."""
    return next(split for split in ("test", "valid", "train") if split in made.scores)


def _keep_scores(folder: Path, record: Record, split: str, made: Made, number: int) -> None:
    """Store the mean score of the policy's answers to each held-out prompt after a number of rounds."""
    record["held_out"], record["prompts"] = split, {split: made.prompts[split]}
    del record["scores"][number:]
    record["scores"].append([sum(some) / len(some) for some in made.scores[split]])
    if split == "train" and not number:
        say("[WARNING] There are no valid or test prompts, so the training prompts are used for the scores.")
    before = f"after round {number}" if number else "before the first round"
    say(f"Score {before}: {score_text(figures(record['scores'])[-1]['score'])} ({split} prompts)")
    _write(folder, record)


def _train(resolved: Resolved, policy: Path | None, here: Path, plan: Plan) -> None:
    """Train on the rows of a round. A run that was killed continues."""
    needed = resolved.needs_reference
    first = resolved.settings.reference_model_path or resolved.settings.resume_adapter_file
    previous = str((policy / ADAPTERS if policy.is_dir() else policy).resolve()) if policy else None
    reference = previous if plan.reference == "previous" and previous else first
    more = {
        "adapter_path": str(here.resolve()),
        "resume": resolved.settings.resume or True,
        "resume_adapter_file": previous,
        "reference_model_path": reference if needed else None,
        "round_reference": plan.reference,
        "fuse": False,
    }
    write_config(resolved, here / "pairs", None, "rounds", **more)
    train(settings_of([str(here / "pairs" / CONFIG)]))
    gc.collect()
    mx.clear_cache()


def _copy(source: Path, target: Path) -> None:
    """Put the adapters of a round where `mlx_lm.generate --adapter-path` finds them."""
    for name in (ADAPTER_CONFIG, ADAPTERS):
        with whole_file(target / name, GO_ON) as file:
            shutil.copyfile(source / name, file)


def _write(folder: Path, record: Record) -> None:
    """Write the record with its scores, so that the report needs no computation."""
    record = {**record, "figures": figures(record["scores"])}
    with whole_file(folder / ROUNDS, GO_ON) as file:
        file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def figures(scores: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Return for each policy its mean score, and its difference from the previous and from the first policy.

    The prompts are the same for all policies, so differences are computed per prompt.

    scores: (policies, prompts) mean score of the answers to each prompt. The first policy is the one before round 1.
    """
    found: list[dict[str, Any]] = []
    for number, values in enumerate(np.array(some, np.float64) for some in scores):
        figure: dict[str, Any] = {"score": intervals.mean(values, BOOTSTRAP_SEED)}
        if number:
            gains = {"gain": scores[number - 1], "gain_in_all": scores[0]}
            for name, before in gains.items():
                figure[name] = intervals.mean(np.round(values - np.array(before), DIGITS), BOOTSTRAP_SEED)
        found.append(figure)
    return found
