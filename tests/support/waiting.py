"""Waiting for something that another process or thread does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    what: str,
    seconds: float = 60.0,
    *,
    process: subprocess.Popen | None = None,
    output: Callable[[], str] = str,
) -> T:
    """Return the first true value of ``condition``, which is called every 10 ms.

    Parameters
    ----------
    what
        Name of what is waited for, for the failure.
    seconds
        Time after which the test fails.
    process
        Process without which waiting would be in vain: the test fails when it ends.
    output
        Called for more text for the failure.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert process is None or process.poll() is None, f"it ended before {what}:\n{output()}"
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}:\n{output()}"
        time.sleep(0.01)
    return value
