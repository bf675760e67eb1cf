"""Refused replies: what each client is told about them, and who is left out after several in a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

MAX_REFUSALS = 3  # in a row, of one kind of message, after which a client is left out for the rest of the run


class Refusals:
    """Refused replies by partition.

    Attributes
    ----------
    unreported
        Partition to round and reason of its last refused reply, until its next message has told it.
    left_out
        Partition to the reason why it is asked no more in this run.
    """

    def __init__(self) -> None:
        self.unreported: dict[int, dict[str, int | str]] = {}
        self.left_out: dict[int, str] = {}
        self._in_a_row: Counter[tuple[int, str]] = Counter()  # partition and type of message to refusals

    def add(self, partition: int, message_type: str, server_round: int, reason: str) -> bool:
        """Record a refusal; return True if the client is to be left out from now on."""
        self.unreported[partition] = {"round": server_round, "reason": reason}
        self._in_a_row[partition, message_type] += 1
        if self._in_a_row[partition, message_type] < MAX_REFUSALS:
            return False
        self.left_out[partition] = (
            f"{MAX_REFUSALS} of its replies in a row were refused; it is left out for the rest of this run. "
            f"The last reason: {reason}"
        )
        return True

    def accept(self, partition: int, message_type: str) -> None:
        """Record a valid reply."""
        self._in_a_row.pop((partition, message_type), None)

    def state(self) -> dict[str, Any]:
        """Return all of it for a checkpoint."""
        in_a_row = [[partition, kind, count] for (partition, kind), count in self._in_a_row.items()]
        return {"unreported": dict(self.unreported), "left_out": dict(self.left_out), "in_a_row": in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.unreported, self.left_out = dict(state["unreported"]), dict(state["left_out"])
        self._in_a_row = Counter({(partition, kind): count for partition, kind, count in state["in_a_row"]})
