"""Training budget: bytes over all clients in both directions, seconds of server and clients, and privacy.

Evaluation and scores count toward neither: they belong to the comparison, not to the method. A run ends with the round
in which the sum reaches the budget, so it may spend up to one round more. A privacy budget is never exceeded: the run
ends before the round that would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedlab.runs.formatting import human_bytes


@dataclass
class Budget:
    """Limits of bytes and seconds, 0 for none, and the amounts spent so far.

    ``left_out`` names the phases whose seconds are not counted; ``exhausted`` is a sentence once the privacy budget
    allows no further round.
    """

    bytes: float
    seconds: float
    left_out: frozenset[str] = frozenset()
    spent_bytes: int = 0
    spent_seconds: float = 0.0
    exhausted: str = ""

    def add(self, moved: int, seconds: Mapping[str, float]) -> None:
        """Add a round: bytes of training in both directions, and its seconds by phase."""
        self.spent_bytes += moved
        self.spent_seconds += sum(value for phase, value in seconds.items() if phase not in self.left_out)

    def restore(self, rounds: Iterable[Mapping[str, Any]]) -> None:
        """Add the recorded rounds of a run that is resumed."""
        for record in rounds:
            moved = sum(client["train_down"] + client["train_up"] for client in record["bytes"].values())
            self.add(moved, record["seconds"])

    @property
    def ended_by(self) -> str:
        """Name of the budget that is spent, "epsilon", "bytes" or "seconds"; "" while none is."""
        if self.exhausted:
            return "epsilon"
        if self.bytes and self.spent_bytes >= self.bytes:
            return "bytes"
        return "seconds" if self.seconds and self.spent_seconds >= self.seconds else ""

    def message(self, server_round: int) -> str:
        """Return a sentence that says which budget ended the run."""
        if self.exhausted:
            return f"the run ends with round {server_round}: {self.exhausted}"
        spent, limit = {
            "bytes": (human_bytes(self.spent_bytes), human_bytes(self.bytes)),
            "seconds": (f"{self.spent_seconds:.1f} s", f"{self.seconds:g} s"),
        }[self.ended_by]
        return f"the run ends with round {server_round}: {spent} of training reach the budget of {limit}"
