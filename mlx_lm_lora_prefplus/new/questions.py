"""Get answers from flags, or from the user at the terminal if a flag is absent."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import UserError

T = TypeVar("T")

FLAGS = {"model": "--model MODEL", "data": "--data DATA"}
"""Key of an answer that has no default → its flag, for messages."""


class Questions:
    """given: key → value of its flag; None if absent. defaults_only: use the defaults and ask nothing."""

    def __init__(self, given: Mapping[str, str | None], defaults_only: bool = False):
        self.given, self.defaults_only = dict(given), defaults_only

    def asks(self, key: str) -> bool:
        """Return whether `answer` would ask the user."""
        return self.given.get(key) is None and not self.defaults_only

    def answer(self, key: str, question: str, default: str | None, parse: Callable[[str], T]) -> T:
        """Return the parsed answer. If an answer at the terminal is invalid, ask again.

        parse: raises a UserError for an invalid answer; its message says what is wrong.

        Raises UserError if the flag's value is invalid, or if there is no flag, no terminal and no default.
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
                except EOFError:  # there is no terminal, or the piped input has ended
                    print()
                    self.defaults_only = True
            reply = reply or default or ""
            if not reply and self.defaults_only:
                missing = [text for name, text in FLAGS.items() if self.given.get(name) is None]
                raise UserError(f"There is no terminal for questions, and no default. Give {' and '.join(missing)}.")
        return reply


def one_of(what: str, names: Mapping[str, Any]) -> Callable[[str], str]:
    """Return a parser that accepts only these names."""

    def parse(reply: str) -> str:
        if reply not in names:
            raise UserError(f"{what} {reply!r:.80} does not exist. Choose one of {', '.join(names)}.")
        return reply

    return parse
