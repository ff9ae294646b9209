"""How does a test wait? For an event or a condition, with a deadline, and never for a span of time."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# How long anything that is expected may take: much longer than it does, since the machine may be busy.
PATIENCE_S = float(os.environ.get("SWITCHBOARD_TEST_PATIENCE_S", "60"))


def until(what: str, check: Callable[[], T | None], within_s: float = PATIENCE_S) -> T:
    """The first result of `check` that is true. Asks again and again: for what no event tells."""
    deadline = time.monotonic() + within_s
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within_s} s (last: {result!r})")
        time.sleep(0.01)
