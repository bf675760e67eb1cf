"""What a run may spend on training: bytes over all clients in both directions, and seconds of server and clients.

Tests and scores are left out of both: they belong to the table, not to the method. A run ends with the round in which
the sum reaches the budget, so it may spend up to one round more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedlab.runs.formatting import human_bytes


@dataclass
class Budget:
    """Limits of bytes and seconds, 0 for none, and what was spent so far.

    ``left_out`` names the phases whose seconds are not counted.
    """

    bytes: float
    seconds: float
    left_out: frozenset[str] = frozenset()
    spent_bytes: int = 0
    spent_seconds: float = 0.0

    def charge(self, moved: int, seconds: Mapping[str, float]) -> None:
        """Add a round: bytes of training in both directions, and its seconds by phase."""
        self.spent_bytes += moved
        self.spent_seconds += sum(value for phase, value in seconds.items() if phase not in self.left_out)

    def take_up(self, rounds: Iterable[Mapping[str, Any]]) -> None:
        """Charge the rounds of a run that goes on."""
        for record in rounds:
            moved = sum(client["train_down"] + client["train_up"] for client in record["bytes"].values())
            self.charge(moved, record["seconds"])

    @property
    def ended_by(self) -> str:
        """Which budget is spent, "bytes" or "seconds"; "" while none is."""
        if self.bytes and self.spent_bytes >= self.bytes:
            return "bytes"
        return "seconds" if self.seconds and self.spent_seconds >= self.seconds else ""

    def sentence(self, server_round: int) -> str:
        """What ended the run, for people."""
        spent, limit = {
            "bytes": (human_bytes(self.spent_bytes), human_bytes(self.bytes)),
            "seconds": (f"{self.spent_seconds:.1f} s", f"{self.seconds:g} s"),
        }[self.ended_by]
        return f"the run ends with round {server_round}: {spent} of training reach the budget of {limit}"
