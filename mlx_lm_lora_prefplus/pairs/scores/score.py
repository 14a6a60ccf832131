"""Score all answers to a prompt with each requested scorer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...engine.model.digest import content_digest
from ...errors import UserError
from ...evaluation.functions import load_function
from ..prompts import Prompt
from ..sample import Answer
from ..settings import PairSettings
from .functions import function_reward, source_digest
from .judged import Compare, judge_all, load_judge
from .reward_models import Reward, load_reward_model
from .rules import find_rule

Score = Callable[[Prompt, list[Answer]], list[float]]


class Scorers:
    """All scorers of a command.

    names: of the rewards, in the order of `reward_weights`; the judge is last. digest: hash of everything that
        determines the scores, except the answers. Functions and rules are loaded when the object is made; models are
        loaded by `load`.
    """

    def __init__(self, settings: PairSettings):
        """Load the functions and rules, and check that the models exist, so that errors appear before any sampling."""
        self.settings = settings
        self.rewards: dict[str, Score] = {}
        self.judge: Compare | None = None
        self.digest: dict[str, str] = {}
        for name in settings.reward:
            self._check_new(name)
            rule = find_rule(name)
            score, digest = (_each(rule), "") if rule else function_reward(name)
            self.rewards[name], self.digest[name] = score, digest
        for path in settings.reward_model:
            self._check_new(path)
            self.digest[path] = _model_digest(path, "reward_model")
        if settings.judge is not None:
            self.judge = load_judge(settings.judge, None)
            self.digest[settings.judge] = source_digest(load_function(settings.judge, "judge"))
        if settings.judge_model is not None:
            self.digest[settings.judge_model] = _model_digest(settings.judge_model, "judge_model")

    def _check_new(self, name: str) -> None:
        if name in self.digest:
            raise UserError(f"pairs: {name} is given twice. Name it once, and set its weight with reward_weights.")

    @property
    def names(self) -> list[str]:
        judges = [self.settings.judge or self.settings.judge_model] if self._judges else []
        return [*self.settings.reward, *self.settings.reward_model, *(f"judge {name}" for name in judges)]

    @property
    def _judges(self) -> bool:
        return bool(self.settings.judge or self.settings.judge_model)

    def load(self) -> None:
        """Load the models. Raises UserError if one cannot be loaded."""
        loaded: dict[str, Reward] = {path: load_reward_model(path) for path in self.settings.reward_model}
        self.rewards = {**self.rewards, **loaded}  # copies of this object stay without models
        if self.settings.judge_model is not None:
            self.judge = load_judge(None, self.settings.judge_model)

    def __call__(self, prompt: Prompt, answers: list[Answer]) -> dict[str, Any]:
        """Score the answers to a prompt.

        Returns:
            rewards: name → score of each answer. With a judge also `undecided` and `compared`, as in `Judgement`.
        """
        rewards = {name: score(prompt, answers) for name, score in self.rewards.items()}
        if self.judge is None:
            return {"rewards": rewards}
        judged = judge_all(self.judge, prompt, answers)
        rewards[self.names[-1]] = judged.scores
        return {"rewards": rewards, "undecided": [list(two) for two in judged.undecided], "compared": judged.compared}


def _each(rule: Callable[[Prompt, Answer], float]) -> Score:
    return lambda prompt, answers: [rule(prompt, answer) for answer in answers]


def _model_digest(path: str, key: str) -> str:
    """Return a digest of the files of a model; empty for a model on the hub. UserError if there is no such model."""
    folder = Path(path).expanduser()
    if weights := [*folder.glob("*.safetensors")]:
        return content_digest([*weights, folder / "config.json", folder / "tokenizer.json"])
    if folder.is_dir() or folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise UserError(
            f"{key}: there is no folder {path} with weights (*.safetensors). Give a folder that mlx_lm.load reads, or "
            "a hub name."
        )
    return ""


def totals(settings: PairSettings, names: Sequence[str], scored: dict[str, Any], answers: Sequence[Answer]) -> Any:
    """Return the score of each answer: the weighted sum of its rewards, minus the penalty for an answer that was cut
    off.
    """
    weights = settings.reward_weights or [1.0] * len(names)
    penalty = settings.missing_eos_penalty or 0.0
    return [
        sum(weight * scored["rewards"][name][place] for weight, name in zip(weights, names, strict=True))
        - (0.0 if answer.finished else penalty)
        for place, answer in enumerate(answers)
    ]
