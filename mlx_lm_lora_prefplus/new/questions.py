"""Answers from flags or, where a flag is absent, from the person at the terminal."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import UserError

T = TypeVar("T")

FLAGS = {"model": "--model MODEL", "data": "--data DATA"}
"""Answers that have no default → the flags that give them."""


class Questions:
    """given: key → value of its flag, None where it is absent. defaults_only: take the defaults and ask nothing."""

    def __init__(self, given: Mapping[str, str | None], defaults_only: bool = False):
        self.given, self.defaults_only = dict(given), defaults_only

    def asks(self, key: str) -> bool:
        """Whether `answer` would ask the person."""
        return self.given.get(key) is None and not self.defaults_only

    def answer(self, key: str, question: str, default: str | None, parse: Callable[[str], T]) -> T:
        """Return the parsed answer. A wrong one at the terminal is asked for again.

        parse: raises UserError, which says what is wrong, for an answer that cannot be used.

        Raises UserError if the flag's value cannot be used, or if there is neither a flag nor a terminal nor a default.
        """
        flag = self.given.get(key)
        if flag is not None:
            return parse(flag)
        while True:
            reply = self._reply(key, question, default)
            try:
                answer = parse(reply)
            except UserError as error:
                if self.defaults_only:
                    raise
                print(f"  {error}")
                continue
            self.given[key] = reply
            return answer

    def _reply(self, key: str, question: str, default: str | None) -> str:
        reply = ""
        while not reply:
            if not self.defaults_only:
                try:
                    reply = input(f"{question} [{default}]: " if default else f"{question}: ").strip()
                except EOFError:  # no terminal, or the end of what was piped in
                    print()
                    self.defaults_only = True
            reply = reply or default or ""
            if not reply and self.defaults_only:
                missing = [text for name, text in FLAGS.items() if self.given.get(name) is None]
                raise UserError(f"There is no terminal to ask at, and no default: give {' and '.join(missing)}.")
        return reply


def one_of(what: str, names: Mapping[str, Any]) -> Callable[[str], str]:
    """Return a parser that accepts only these names."""

    def parse(reply: str) -> str:
        if reply not in names:
            raise UserError(f"{what} {reply!r:.80}: choose one of {', '.join(names)}.")
        return reply

    return parse
