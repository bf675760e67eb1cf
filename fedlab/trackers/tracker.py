"""Protocol of a tracker, the facts of a run that it gets, and the names of a round's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedlab.config.sections import Value
from fedlab.runs.client_distribution import FEW, distributions


@dataclass(frozen=True)
class RunFacts:
    """The run that a tracker follows.

    Attributes
    ----------
    directory
        The run directory.
    id
        Identifier of the run, the same when it is resumed.
    project, group
        Under which runs are filed; the group is empty for a run of no comparison.
    options
        Every option by its key.
    after
        Round after which the run goes on, -1 for one that begins: later rounds may have been logged before.
    clients
        Number of clients of the run.
    """

    directory: Path
    id: str
    project: str
    group: str
    options: Mapping[str, Value]
    after: int
    clients: int


class Tracker(Protocol):
    """A place to which metrics go."""

    def add(self, server_round: int, scalars: Mapping[str, float]) -> None:
        """Log the numbers of a round by name."""
        ...

    def close(self, failed: bool) -> None:
        """Write what is left; ``failed`` says that the run has not come to its end."""
        ...


class Scalars:
    """Names of the numbers of a round's record.

    In a run of a few clients every one has a curve; in one of many, the quantiles over those that were tested in the
    round have.
    """

    def __init__(self, clients: int) -> None:
        self.clients = clients

    def __call__(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers of one line of ``metrics.jsonl`` by name: ``accuracy/usps``, ``mean/accuracy``, ..."""
        return dict(self._named(record))

    def _named(self, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        curves = record["clients"]
        if self.clients > FEW:
            names = {name for metrics in record["clients"].values() for name in metrics}
            curves = distributions(record["clients"], dict.fromkeys(sorted(names), 0))
        for curve, metrics in curves.items():
            for name, value in metrics.items():
                yield f"{name}/{curve}", value
        for group in ("mean", "server", "score", "seconds"):
            for name, value in record.get(group, {}).items():
                yield f"{group}/{name}", value
        for name in ("train_down", "train_up"):
            yield f"bytes/{name}", sum(client[name] for client in record["bytes"].values())
