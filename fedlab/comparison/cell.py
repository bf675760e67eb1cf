"""One run of a comparison's grid: what it was asked for, where it is, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FINISHED, FAILED, PENDING = "finished", "failed", "pending"


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes
    ----------
    label, strategy
        The variant's name in the table, and the strategy behind it.
    options
        Values of the grid's options as they were written; one that has no effect on this strategy is missing.
    run
        Run directory, relative to the comparison's.
    device
        Device on which it ran, with the name of the GPU or the processor; "" if it did not begin.
    """

    label: str
    strategy: str
    seed: int
    options: Mapping[str, str]
    run: str
    status: str = PENDING
    error: str | None = None
    device: str = ""

    @property
    def reason(self) -> str:
        """The last line of the error, which may be a traceback."""
        return ((self.error or "").strip().splitlines() or ["no reason is known"])[-1]

    @property
    def name(self) -> str:
        """The cell's label, options and seed for people."""
        return ", ".join(
            [self.label, *(f"{option}={value}" for option, value in self.options.items()), f"seed {self.seed}"]
        )
