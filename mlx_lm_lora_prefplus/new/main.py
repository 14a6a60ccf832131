"""The steps of `mlx_lm_lora.prefplus new`: detect, ask, fit into memory, write."""

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from sys import stderr
from typing import Any, NamedTuple

from ..data.formats.convert import MADE_FROM
from ..engine.memory.advice import total_memory
from ..errors import UserError
from ..host.config.command_line import settings_of
from ..host.config.presets import PRESETS
from ..host.config.resolve import COMMAND_LINE
from ..host.output.fuse import gigabytes
from ..plugin.installed import registry
from ..plugin.protocol import RowKind
from ..preview.fit import Target, machine_memory
from ..preview.report import Report, build_report
from ..settings import DataSettings
from ..storage.atomic import whole_file
from .config import Plan, lines_of, text_of
from .facts import DataFacts, ModelFacts, data_facts, model_facts
from .offers import ABOUT, NO_PRESET, usual_mode, usual_preset
from .questions import Questions, one_of

COMMAND = "mlx_lm_lora.prefplus new"

OWN_KEYS = ("model", "data", "train_mode", "preset", "train", "config")
"""Keys that cannot be further flags: `new` has flags or questions for them, or they do not belong in a file."""


class Facts(NamedTuple):
    """model, data: the names or paths that the user gave."""

    model: str
    of_model: ModelFacts
    data: str
    of_data: DataFacts


class Machine(NamedTuple):
    """size: the nominal memory in bytes; None for this machine. text: the machine in words."""

    size: int | None
    text: str


def make_config(flags: Mapping[str, str | None], of_training: Sequence[str], defaults_only: bool) -> None:
    """Make a config from flags and answers, and print the command that trains with it.

    flags: values of the flags model, data, mode, preset, machine and output; None for an absent flag.
    of_training: further flags of mlx_lm_lora.train, whose values go into the file. defaults_only: ask nothing.
    """
    if flags.get("output"):
        _unused(str(flags["output"]))
    named = PRESETS.get(flags.get("preset") or "")
    given = _values_of(of_training, flags.get("mode") or (named.mode if named else "dpo"))
    questions = Questions(flags, defaults_only)
    facts = _facts(questions, given)
    mode = _mode(questions, facts)
    preset = _preset(questions, mode, facts.of_model)
    machine = _machine(questions)
    output = questions.answer("output", "Name of the config file", _free("run", ".yaml"), _unused)
    place = _free(f"runs/{Path(output).stem}")
    plan = Plan(facts.model, facts.data, mode, preset, output, place, machine.text, given)
    text, warnings = _fitted(plan, facts, machine)
    with whole_file(Path(output)) as file:
        file.write_text(text, encoding="utf-8")
    _say_what_next(output, warnings)


def _values_of(of_training: Sequence[str], mode: str) -> dict[str, Any]:
    """Return key → value of the training flags that the user gave."""
    if of_training and not of_training[0].startswith("-"):
        raise UserError(f"{COMMAND}: {of_training[0]!r} is not a flag. To name the file to write, use --output FILE.")
    resolved = settings_of(of_training, train_mode=mode)
    typed = [key for key, source in resolved.sources.items() if source == COMMAND_LINE]
    return {key: resolved.values[key] for key in typed if key not in (*OWN_KEYS, "dpo_cpo_loss_type")}


def _facts(questions: Questions, given: Mapping[str, Any]) -> Facts:
    columns = {key: value for key, value in given.items() if key in DataSettings.model_fields}
    default = DataSettings.model_fields["data"].default
    model, of_model = questions.answer(
        "model", "Model (a folder or a Hugging Face name)", None, lambda name: (name, model_facts(name))
    )
    print(f"  {of_model.text}")
    data, of_data = questions.answer(
        "data",
        "Data (a folder, a file or a Hugging Face name)",
        default if Path(default).is_dir() else None,
        lambda place: (place, data_facts(DataSettings(**{**columns, "data": place}))),
    )
    print(f"  {of_data.text}")
    return Facts(model, of_model, data, of_data)


def _mode(questions: Questions, facts: Facts) -> str:
    """Return the train mode: from --mode, from the preset, or a mode that can train on these rows."""
    kind, all_modes = facts.of_data.kind, registry().modes
    kinds: dict[str, RowKind] = {
        mode: one.trainer.rows_of(one.trainer.options()) for mode, one in sorted(all_modes.items())
    }
    readable = {mode: ABOUT.get(mode, "") for mode in kinds if kind in MADE_FROM[kinds[mode]]}

    def parse(mode: str) -> str:
        if mode in kinds and mode not in readable:
            modes = ", ".join(readable)
            raise UserError(f"mode: {mode} does not work with {kind} rows. Modes for these rows: {modes}.")
        return one_of("mode", readable)(mode)

    named = PRESETS.get(questions.given.get("preset") or "")
    if named and questions.given.get("mode") is None:
        return parse(named.mode)
    if questions.asks("mode"):
        print("Modes for these rows:\n" + "".join(f"  {mode:<6} {text}\n" for mode, text in readable.items()))
    return questions.answer("mode", "Mode", usual_mode(kind, facts.of_model), parse)


def _preset(questions: Questions, mode: str, model: ModelFacts) -> str | None:
    offered = {name: preset for name, preset in PRESETS.items() if preset.mode == mode}
    if not offered and questions.given.get("preset") is None:
        return None
    if questions.asks("preset"):
        listed = "".join(f"  {name:<18} {preset.about}\n" for name, preset in offered.items())
        print(f"Published settings of {mode}:\n{listed}")
    allowed = {**offered, NO_PRESET: None}
    name = questions.answer("preset", "Preset", usual_preset(mode, model), one_of(f"preset, for mode {mode},", allowed))
    return None if name == NO_PRESET else name


def _machine(questions: Questions) -> Machine:
    here = f"this machine, {gigabytes(total_memory())}"

    def parse(reply: str) -> Machine:
        if reply in (here, "this"):
            return Machine(None, here)
        try:
            return Machine(machine_memory(reply), f"a Mac with {reply}")
        except ValueError as error:
            raise UserError(f"machine: {error}, or this for the machine you are using.") from error

    return questions.answer("machine", "Machine to train on: a Mac's memory, such as 16GB, or this", here, parse)


def _unused(output: str) -> str:
    if Path(output).expanduser().exists():
        raise UserError(f"output: {output} already exists and is not overwritten. Give another name.")
    if Path(output).suffix not in (".yaml", ".yml"):
        raise UserError(f"output: {output} must end in .yaml or .yml.")
    return str(Path(output).expanduser())


def _free(stem: str, suffix: str = "") -> str:
    """Return the first name of stem, stem-2, stem-3 … that does not exist."""
    name, number = stem + suffix, 2
    while Path(name).exists():
        name, number = f"{stem}-{number}{suffix}", number + 1
    return name


def _fitted(plan: Plan, facts: Facts, machine: Machine) -> tuple[str, list[str]]:
    """Return the text of a config that passes `check`, and the warnings of `check`.

    Settings are changed until the run fits into the machine's memory.
    """
    print(f"Measuring a few steps, and finding settings that fit into {machine.text} …", file=stderr, flush=True)
    first = text_of(plan, lines_of(plan, facts.of_model, facts.of_data, {}))
    report = _checked(first, Target(machine.size, lambda text: print(f"  {text}", file=stderr, flush=True)))
    if "fit" not in report:
        raise UserError(" ".join(["No config was written.", *report["problems"]]))
    fit, changes = report["fit"], {}
    if not fit["fits"]:
        if fit["proposal"] is None:
            raise UserError(
                f"No config was written: the run needs {gigabytes(fit['peak'])}, but only {gigabytes(fit['usable'])} "
                f"of {machine.text} can be used, and no change of settings makes it fit. Use a smaller model, or one "
                "with 4 bits."
            )
        changes = fit["proposal"]["changes"]
    used = {split: statistics["used"] for split, statistics in report["data"].items()}
    text = text_of(
        plan, lines_of(plan, facts.of_model, facts.of_data._replace(rows={**facts.of_data.rows, **used}), changes)
    )
    if text != first:
        report = _checked(text)
        if report["problems"]:
            raise UserError(" ".join(["No config was written.", *report["problems"]]))
    return text, report["warnings"]


def _checked(text: str, fitted: Target | None = None) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "new.yaml"
        file.write_text(text, encoding="utf-8")
        return build_report([str(file)], measured=fitted is not None, fitted=fitted)


def _say_what_next(output: str, warnings: list[str]) -> None:
    name = shlex.quote(output)
    for warning in warnings:
        print(f"warning: {warning}")
    print(
        f"\nWritten: {output}. Each line has a comment. Check the rows and the forecast, then train:\n\n"
        f"    mlx_lm_lora.prefplus check {name}\n    mlx_lm_lora.train --config {name}"
    )
