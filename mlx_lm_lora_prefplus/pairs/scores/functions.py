"""The user's reward functions."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...engine.model.digest import file_digest
from ...errors import UserError
from ...evaluation.functions import load_function
from ..prompts import Prompt
from ..sample import Answer


def function_reward(name: str) -> tuple[Callable[[Prompt, list[Answer]], list[float]], str]:
    """Load a reward function, MODULE:FUNCTION or FILE.py:FUNCTION.

    The function takes the texts `prompt` and `completion` and returns a number. It may also have the form of GRPO's
    reward functions in mlx-lm-lora and TRL: it then takes the lists `prompts` and `completions` and returns a list of
    numbers. A further parameter receives the data column of the same name; `**columns` receives all columns.

    Returns:
        A function that scores the answers to a prompt, and a digest of the file.

    Raises:
        UserError: The function does not exist, or has other parameters.
    """
    function = load_function(name, "reward")
    parameters = inspect.signature(function).parameters
    lists = "completions" in parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    if not lists and not takes_all and not {"prompt", "completion"} <= set(parameters):
        raise UserError(
            f"reward {name}: takes ({', '.join(parameters)}). Write def {name.rpartition(':')[2]}(prompt, "
            "completion) to return one number, or with (prompts, completions) to return a list. Extra parameters "
            "receive columns of the row."
        )

    def columns(prompt: Prompt) -> dict[str, Any]:
        own = ("prompt", "completion", "prompts", "completions")
        given = {key: value for key, value in prompt.row.items() if key not in own}
        return given if takes_all else {key: value for key, value in given.items() if key in parameters}

    def score(prompt: Prompt, answers: list[Answer]) -> list[float]:
        texts, extra = [answer.text for answer in answers], columns(prompt)
        try:
            if lists:
                repeated = {key: [value] * len(texts) for key, value in extra.items()}
                if "prompts" in parameters or takes_all:
                    repeated["prompts"] = [prompt.text] * len(texts)
                values = list(function(completions=texts, **repeated))
            else:
                values = [function(prompt=prompt.text, completion=text, **extra) for text in texts]
        except Exception as error:  # the user's function may raise anything
            raise UserError(
                f"reward {name} ended with {type(error).__name__}: {error}, on the prompt {prompt.text!r:.80}. The "
                "answers are kept: correct the function and give the same command."
            ) from error
        return _checked(values, len(texts), name)

    return score, source_digest(function)


def _checked(values: list[Any], count: int, name: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UserError(
            f"reward {name} returned {values!r:.80} for {count} answers. Return one finite number for each answer; "
            "the answers are kept."
        )
    return numbers


def source_digest(function: Any) -> str:
    """Return a digest of the file that defines a function; empty if there is none."""
    file = inspect.getsourcefile(inspect.unwrap(function)) if inspect.isroutine(function) else None
    return file_digest(Path(file)) if file and Path(file).is_file() else ""
