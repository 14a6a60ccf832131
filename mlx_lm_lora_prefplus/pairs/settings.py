"""How answers are sampled and scored: the flags of `pairs`, and the keys under `pairs` in a config file."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..errors import UserError
from ..host.config.resolve import Resolved
from ..settings.marks import Positive
from ..validation import validated


def _as_list(value: Any) -> Any:
    """Turn a single value into a list. (Older versions of typer pass a tuple of values.)"""
    return value if value is None or isinstance(value, (list, tuple)) else [value]


Texts = Annotated[list[str], BeforeValidator(_as_list)]


class PairSettings(BaseModel):
    """How answers are sampled and scored. Defaults: five answers at temperature 0.8, as for SimPO's data (Meng et al.
    2024, 2405.14734).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    num_generations: Positive = 5
    seeds: Annotated[list[int], BeforeValidator(_as_list), Field(min_length=1)] = [0]
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 256
    prompts: Positive | None = None
    generation_batch_size: Positive = 32
    reward: Texts = []
    reward_model: Texts = []
    judge: str | None = None
    judge_model: str | None = None
    reward_weights: Annotated[list[float], BeforeValidator(_as_list)] | None = None
    missing_eos_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    min_margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @property
    def answers(self) -> int:
        """Return the number of answers to a prompt."""
        return self.num_generations * len(self.seeds)

    @property
    def scorers(self) -> int:
        """Return the number of scorers, each of which gives every answer a score."""
        return len(self.reward) + len(self.reward_model) + (self.judge is not None) + (self.judge_model is not None)


def settings_in(resolved: Resolved, given: Mapping[str, Any], command: str) -> PairSettings:
    """Return the settings under `pairs` in a run's config file. Settings given to the command replace them.

    given: key → value from the command; None if the user did not give it. Without `seeds`, the seed is that of the run.

    Raises:
        UserError: Settings are invalid. The message lists all problems.
    """
    section = resolved.values.get("pairs") or {}
    if not isinstance(section, Mapping):
        raise UserError(
            f"pairs: {section!r:.80} is not a mapping. Write the settings as lines below it, such as num_generations: 4"
        )
    values = {**section, **{key: value for key, value in given.items() if value is not None}}
    return pair_settings({"seeds": resolved.settings.seed, **values}, command)


def pair_settings(values: Mapping[str, Any], where: str) -> PairSettings:
    """Check the values and return them as settings. where: name of the command, for messages.

    Raises:
        UserError: Settings are invalid. The message lists all problems.
    """
    known = list(PairSettings.model_fields)
    wrong = []
    for key in (key for key in values if key not in known):
        near = difflib.get_close_matches(str(key), known, 1)
        wrong.append(f"{key}: is not a key of pairs.{f' Did you mean {near[0]}?' if near else ''}")
    values = {key: value for key, value in values.items() if key in known and value is not None}
    settings, problems = validated(PairSettings, values)
    wrong += [f"{key}: {values[key]!r:.80} {text}." for key, texts in problems.items() for text in texts]
    if settings is not None and not wrong:
        wrong = list(_conflicts(settings))
    if wrong:
        raise UserError(f"{where}: " + "\n".join(wrong))
    assert settings is not None
    return settings


def _conflicts(settings: PairSettings) -> Any:
    if settings.answers < 2:
        yield "num_generations: one answer cannot make a pair. Give 2 or more, or several seeds."
    if settings.temperature == 0:
        yield "temperature: 0 gives the same answer every time. Give a temperature above 0, such as 0.8."
    if len(set(settings.seeds)) < len(settings.seeds):
        yield f"seeds: {settings.seeds} repeats a seed, which gives the same answers again. Name each seed once."
    if settings.scorers == 0:
        yield (
            "nothing scores the answers. Give one or several of reward (FILE.py:FUNCTION, MODULE:FUNCTION, "
            "length:MIN-MAX, regex:PATTERN, json, command:PROGRAM), reward_model (FOLDER), judge (MODULE:FUNCTION) or "
            "judge_model (FOLDER): as flags of the command pairs, or as keys under pairs in the config."
        )
    if settings.judge is not None and settings.judge_model is not None:
        yield "judge and judge_model cannot be combined. Give one of them."
    weights = settings.reward_weights
    if weights is not None and len(weights) != settings.scorers:
        yield (
            f"reward_weights: {len(weights)} weights for {settings.scorers} scores. Give one for each: of reward in "
            "their order, then reward_model, then the judge."
        )
