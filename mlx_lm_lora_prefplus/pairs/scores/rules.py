"""Rules that score an answer without a model: length, a regular expression, JSON, a program."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable

from ...errors import UserError
from ..prompts import Prompt
from ..sample import Answer

Rule = Callable[[Prompt, Answer], float]
"""Function (prompt, answer) → score; higher is better."""

FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
LENGTHS = re.compile(r"(\d*)-(\d*)")
SECONDS = 60
"""Seconds that a program may take for one answer."""


def find_rule(name: str) -> Rule | None:
    """Return the rule that a value of `reward` names: length:MIN-MAX, regex:PATTERN, json or command:PROGRAM. Returns
    None for other values.

    Raises:
        UserError: The value names a rule, but the rest of it has wrong syntax.
    """
    kind, _, rest = name.partition(":")
    if name == "json":
        return _is_json
    if kind in RULES:
        return RULES[kind](rest)
    return None


def _length(text: str) -> Rule:
    match = LENGTHS.fullmatch(text)
    least, most = (int(group) if group else None for group in match.groups()) if match else (None, None)
    if (least is None and most is None) or (least and most is not None and least > most) or most == 0:
        raise UserError(
            f"reward length:{text} is invalid. Write length:MIN-MAX in tokens, such as length:20-120 or length:-120."
        )

    def score(prompt: Prompt, answer: Answer) -> float:
        """Return 1 if the length is within the bounds. Return length / minimum below them, and maximum / length above
        them.
        """
        if least and answer.tokens < least:
            return answer.tokens / least
        return most / answer.tokens if most and answer.tokens > most else 1.0

    return score


def _regex(text: str) -> Rule:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"reward regex:{text} is not a valid Python regular expression ({error}).") from error
    return lambda prompt, answer: float(pattern.search(answer.text) is not None)


def _is_json(prompt: Prompt, answer: Answer) -> float:
    """Return 1 if the answer consists only of JSON, or only of one code block with JSON; otherwise 0."""
    fenced = FENCE.match(answer.text)
    try:
        json.loads(fenced.group(1) if fenced else answer.text)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _command(text: str) -> Rule:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"reward command:{text}: cannot be split into words ({error}).") from error
    if not words or shutil.which(words[0]) is None:
        raise UserError(
            f"reward command:{text}: there is no program {words[0] if words else ''!r}. Write a program with its "
            "arguments. It reads {prompt, completion, row} as JSON on its standard input and ends with exit code 0 if "
            "the answer passes."
        )

    def score(prompt: Prompt, answer: Answer) -> float:
        given = json.dumps({"prompt": prompt.text, "completion": answer.text, "row": dict(prompt.row)}, default=str)
        try:
            done = subprocess.run(words, input=given.encode(), capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return 0.0
        except OSError as error:
            raise UserError(f"reward command:{text}: cannot be run ({error}).") from error
        return float(done.returncode == 0)

    return score


RULES: dict[str, Callable[[str], Rule]] = {"length": _length, "regex": _regex, "command": _command}
