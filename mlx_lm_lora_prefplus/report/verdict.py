"""Did it work? A sentence with the numbers."""

from typing import Literal, NamedTuple

from .runs import Report, RunRecord

ACCURACY, MARGIN = "rewards/accuracies", "rewards/margins"
ENOUGH = 0.7
"""MLX-LoRA-Studio's rule: accuracies above this with margins above 0 mean that the loss does real work."""

CHANCE = 0.5
"""The accuracy of a policy that still is its reference."""

CLEARLY = 0.02
"""An accuracy has changed if it changed by more than this."""

LITTLE = 0.6
"""Below this an accuracy of some dozens of rows may be chance."""

LATEST = 5
"""Without validation: so many reports at each end are averaged, or a tenth of all; single ones are of a few rows."""


class Verdict(NamedTuple):
    """outcome: how it went; unknown where the mode reports no accuracy."""

    outcome: Literal["worked", "partly", "failed", "unknown"]
    text: str


def verdict(run: RunRecord) -> Verdict:
    """What the validation says of a run; without one, what the training does."""
    validated, trained = (
        [report for report in split.values() if ACCURACY in report or MARGIN in report]
        for split in (run.valid, run.train)
    )
    reports = validated or trained
    if not any(ACCURACY in report for report in reports):
        return _of_objective(run)
    split = "Validation" if validated else "Training"
    count = 1 if validated else max(LATEST, len(reports) // 10)
    first, last = _mean(reports[:count]), _mean(reports[-count:])
    before, after = first.get(ACCURACY, CHANCE), last.get(ACCURACY, CHANCE)
    margin_before, margin = first.get(MARGIN, 0.0), last.get(MARGIN, 0.0)
    if len(reports) == 1:
        text = f"{split} accuracy is {after:.2f} and the margin {margin:+.2f} after one report: too early to judge."
        return Verdict("unknown", text)
    text = f"{split} accuracy {_moved(before, after)}, the margin {_moved(margin_before, margin, '+.2f')}"
    good = after > ENOUGH and margin > 0
    better = after > before + CLEARLY or (after >= before - CLEARLY and margin > margin_before)
    if good and better:
        outcome, judged = "worked", f"it worked (accuracy above {ENOUGH} with a positive margin)"
    elif good:
        outcome, judged = "partly", f"the accuracy is above {ENOUGH}, but training did not raise it"
    elif better and margin > 0:
        outcome = "partly"
        lead = "it learns, but" if after >= LITTLE else "little is learnt so far:"
        judged = f"{lead} accuracy above {ENOUGH} with a positive margin is what to look for"
    else:
        outcome = "failed"
        judged = f"it did not work: accuracy above {ENOUGH} with a positive margin is what to look for"
    unsure = "" if validated else " There was no validation: these are rows that were trained on."
    return Verdict(outcome, f"{text}: {judged}.{_past_its_best(run)}{unsure}")


def _mean(reports: list[Report]) -> Report:
    names = {name for report in reports for name in report}
    values = {name: [report[name] for report in reports if name in report] for name in names}
    return {name: sum(those) / len(those) for name, those in values.items()}


def _moved(before: float, after: float, form: str = ".2f") -> str:
    if format(before, form) == format(after, form):
        return f"stayed at {after:{form}}"
    return f"{'rose' if after > before else 'fell'} from {before:{form}} to {after:{form}}"


def _of_objective(run: RunRecord) -> Verdict:
    reports = [report["loss"] for report in (run.valid or run.train).values() if "loss" in report]
    if len(reports) < 2:
        return Verdict("unknown", "Too little was reported to judge.")
    split = "validation" if run.valid else "training"
    moved = _moved(reports[0], reports[-1], ".3f")
    return Verdict("unknown", f"The {split} objective {moved}; this mode reports no accuracy.")


def _past_its_best(run: RunRecord) -> str:
    """A hint where the validation objective has turned round: a twentieth above its best, that lies back."""
    losses = {iteration: report["loss"] for iteration, report in run.valid.items() if "loss" in report}
    if len(losses) < 3:
        return ""
    best = min(losses, key=lambda iteration: losses[iteration])
    last = max(losses)
    if best == last or losses[last] - losses[best] < 0.05 * abs(losses[best]):
        return ""
    when = "before training" if best == 1 else f"at iteration {best}"
    return (
        f" The validation objective was best {when} ({losses[best]:.3f}) and is {losses[last]:.3f} at the "
        "end: fewer iters, a smaller learning_rate, or save_best keeps the better adapters."
    )
