"""Many corners of one property in one test: all are tried, and the message names each that fails."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def holds_at_every(corners: Iterable[tuple], check: Callable[..., Any]) -> None:
    """Call check(*corner) for each corner, and fail with every corner where it raised."""
    count, failures = 0, []
    for corner in corners:
        count += 1
        try:
            check(*corner)
        except (Exception, pytest.fail.Exception) as error:
            failures.append(f"at {', '.join(map(str, corner))}: {type(error).__name__}: {error}")
    assert count, "there are no corners"
    assert not failures, f"{len(failures)} of {count} corners:\n" + "\n".join(failures)
