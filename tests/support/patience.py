"""Timeouts that adapt to a busy machine, so that tests become slow instead of failing."""

import os
import time
from collections.abc import Callable


def patience(seconds: float) -> float:
    """Return `seconds` on a quiet machine, multiplied by the runnable processes per core on a busy one."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_until(
    condition: Callable[[], object],
    description: str,
    *,
    seconds: float = 120.0,
    pause: float = 0.01,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait until `condition` returns a true value.

    Args:
        condition: Called until it is true.
        description: Description of the condition, for the error message.
        seconds: Time to wait on a quiet machine.
        pause: Seconds between two calls.
        check: Called before each pause. Raises if waiting has become pointless, such as for a process that ended.

    Raises:
        AssertionError: The condition is still false after `patience(seconds)`.
    """
    began = time.monotonic()
    while not condition():
        check()
        waited = time.monotonic() - began
        assert waited < patience(seconds), f"after {waited:.0f} s still false: {description}"
        time.sleep(pause)
