"""Backend of a comparison: it carries the cells to the machines of a cluster. And the parts that all backends share.

All machines see the comparison's folder under the same path; a cell is a run directory there, so what one machine began
another one goes on with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fedlab.comparison.workers import Task
from fedlab.environment import settings
from fedlab.errors import ConfigError
from fedlab.trackers.opening import TRACKERS

STOP_SECONDS = 20.0  # that an interrupted cell has to note where it stands


class Backend(Protocol):
    """The machines of a cluster, as a comparison uses them."""

    @property
    def title(self) -> str:
        """Name for people, such as ``Ray at 10.0.0.1:6379``."""
        ...

    def reach(self) -> None:
        """Raise ConfigError, with a sentence, when there is no such cluster; before cells are planned."""
        ...

    def check(self, tasks: Sequence[Task]) -> int:
        """Return how many of some tasks may be queued at a time; nothing is started.

        Raises
        ------
        ConfigError
            When the cluster cannot run them, with a sentence.
        """
        ...

    def open(self, folder: Path) -> None:
        """Connect, for the comparison of a folder."""
        ...

    def submit(self, task: Task) -> None:
        """Queue a task, to be run when a machine is free."""
        ...

    def ended(self, seconds: float) -> list[tuple[Task, str | None]]:
        """Return the tasks that ended within some seconds, each with its error."""
        ...

    def close(self) -> None:
        """Stop what still runs, and disconnect."""
        ...


def parse_details(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands before the first ``key=value`` of ``10.0.0.1:6379,gpus=1``, and the values by key.

    A part without ``=`` that follows a value belongs to it: ``nodelist=a,b`` is one value.
    """
    head, values, last = "", dict[str, str](), ""
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if equals:
            last = key.strip()
            values[last] = value.strip()
        elif last:
            values[last] += f",{part}"
        else:
            head = f"{head},{part}" if head else part.strip()
    return head, values


def cell_settings() -> dict[str, str]:
    """Return the variables of fedlab and of trackers, which may be secrets, that a cell gets on another machine."""
    return settings(*(row.variables for row in TRACKERS.values()))


def number(key: str, values: Mapping[str, str], default: float) -> float:
    """Return a number that is not negative from the details, or the default.

    Raises
    ------
    ConfigError
        When it is no such number.
    """
    text = values.get(key, str(default))
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ConfigError(f"--on: {key} is {text!r}; a number is expected, for example {key}=1")
    return found
