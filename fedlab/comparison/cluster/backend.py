"""Backend of a comparison: it carries the cells to the machines of a cluster. And the parts that all backends share.

All machines see the comparison's folder under the same path; a cell is a run directory there, so what one machine began
another one goes on with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fedlab.comparison.workers import Task
from fedlab.errors import ConfigError
from fedlab.plugins import PLUGIN_PATH, plugin_folders, python_path

FORWARDED = "FEDLAB_"  # beginning of the variables that cells get from the environment of the command
STOP_SECONDS = 20.0  # that an interrupted cell has to note where it stands


class Backend(Protocol):
    """The machines of a cluster, as a comparison uses them."""

    @property
    def title(self) -> str:
        """Name for people, such as ``Ray at 10.0.0.1:6379``."""
        ...

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise ConfigError, with a sentence, when the cluster cannot run these tasks; nothing is started."""
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


def environment() -> dict[str, str]:
    """Return the variables that a cell needs on another machine: where modules are found, and settings of fedlab."""
    return {
        **{name: value for name, value in os.environ.items() if name.startswith(FORWARDED)},
        **({"FEDLAB_DATA": str(Path(os.environ["FEDLAB_DATA"]).resolve())} if os.environ.get("FEDLAB_DATA") else {}),
        "PYTHONPATH": python_path(),
        PLUGIN_PATH: os.pathsep.join(plugin_folders()),
    }


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
