"""Compare the settings and data of a run's processes, and describe differences in words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LONGEST_VALUE = 100
"""In messages, longer values are cut to this many characters."""


def described(error: BaseException) -> str:
    """Return the text of an error on one line, to send it to other processes."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by SIGINT."
    if isinstance(error, SystemExit):
        return f"ended by a signal or by the program (exit code {error.code})."
    text = " ".join(str(error).split())
    text += "" if text.endswith((".", "!", "?")) else "."
    return text if type(error).__name__ == "UserError" else f"{type(error).__name__}: {text}"


def failures(reasons: Sequence[str | None]) -> str | None:
    """Return a sentence about the processes that failed; None if none failed. reasons: for each rank, why it failed, or
    None.
    """
    failed = [f"Rank {rank} failed at its start: {reason}" for rank, reason in enumerate(reasons) if reason is not None]
    return " ".join(failed) or None


def differences(given: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a message that names each value that differs between processes; None if none differs. given: for each
    rank, name → value.
    """
    names = dict.fromkeys(name for one in given for name in one)
    different = [_different(name, [one.get(name, "nothing") for one in given]) for name in names]
    if not any(different):
        return None
    return (
        f"The {len(given)} processes were started differently. {'; '.join(filter(None, different))}. Start all of them "
        "with the same command, and with the same model, data and package versions on each machine."
    )


def _different(name: str, values: Sequence[Any]) -> str | None:
    if all(value == values[0] for value in values):
        return None
    ranks_of: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks_of.setdefault(str(value), []).append(rank)
    return f"{name}: " + ", ".join(f"{_short(value)} in {_ranks(ranks)}" for value, ranks in ranks_of.items())


def _short(value: str) -> str:
    return value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 2]} …"


def _ranks(ranks: Iterable[int]) -> str:
    numbers = list(ranks)
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    return f"ranks {', '.join(map(str, numbers[:8]))}" + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
