"""Parts of a round's line in ``metrics.jsonl`` that its messages tell: bytes and failures by client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlab.comm.replies import PhaseStats


def traffic(names: Mapping[int, str], train: PhaseStats, evaluate: PhaseStats) -> dict[str, dict[str, int]]:
    """Return the bytes of each client that got a message, to it and from it, in training and in evaluation."""
    return {
        names[partition]: {
            "train_down": train.down.get(partition, 0),
            "train_up": train.up.get(partition, 0),
            "evaluate_down": evaluate.down.get(partition, 0),
            "evaluate_up": evaluate.up.get(partition, 0),
        }
        for partition in sorted(train.down.keys() | evaluate.down.keys())
    }


def failures(names: Mapping[int, str], train: PhaseStats, evaluate: PhaseStats) -> list[dict[str, Any]]:
    """Return the clients that failed, with the last line of the reason."""
    return [
        {
            "client": names[failure.partition],
            "partition": failure.partition,
            "phase": phase,
            "kind": failure.kind,
            "reason": failure.reason.splitlines()[-1],
        }
        for phase, stats in (("clients", train), ("evaluate", evaluate))
        for failure in stats.failures
    ]
