"""Work of a cell, as text that any process can read back: the run of a preset, or of a Flower app."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import ClassVar, Protocol, Self

from fedlab.references import load_reference

KINDS = {
    "preset": "fedlab.comparison.preset_work:PresetWork",
    "flower app": "fedlab.comparison.flower_work:FlowerWork",
}


class Work(Protocol):
    """A run that a cell is made of.

    Attributes
    ----------
    kind
        Name in ``KINDS``.
    """

    kind: ClassVar[str]

    @property
    def threads(self) -> int:
        """CPU threads, and so the CPUs that it takes."""
        ...

    @property
    def device(self) -> str:
        """Device as an option: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
        ...

    @property
    def reserved(self) -> tuple[float, float]:
        """CPUs and GPUs that each of its clients reserves on a cluster by itself."""
        ...

    @property
    def pretraining(self) -> Hashable:
        """A value in which runs differ that cannot share a pre-training; None for a run that has none."""
        ...

    def to_text(self) -> str:
        """Return all that another process needs."""
        ...

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the work of such a text."""
        ...

    def __call__(self, path: Path) -> object:
        """Run in a directory; go on with, or read, what is there."""
        ...


def write_work(work: Work) -> str:
    """Return a work as one line of text."""
    return json.dumps({"kind": work.kind, "text": work.to_text()})


def read_work(line: str) -> Work:
    """Return the work that a line is about.

    Raises
    ------
    ConfigError
        When this process cannot find what the work names.
    """
    found = json.loads(line)
    work: Work = load_reference(KINDS[found["kind"]]).from_text(found["text"])
    return work
