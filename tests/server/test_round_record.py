"""What a round's messages tell: bytes of those that got one, and who failed."""

from __future__ import annotations

from fedlab.comm.replies import ClientFailure, PhaseStats
from fedlab.server.round_record import failures, traffic

NAMES = {0: "a", 1: "b", 2: "c"}


def test_bytes_are_of_the_clients_that_got_a_message_in_the_order_of_partitions():
    train, evaluate = PhaseStats(down={2: 7, 0: 5}, up={0: 3}), PhaseStats(down={0: 1}, up={0: 2})
    assert traffic(NAMES, train, evaluate) == {
        "a": {"train_down": 5, "train_up": 3, "evaluate_down": 1, "evaluate_up": 2},
        "c": {"train_down": 7, "train_up": 0, "evaluate_down": 0, "evaluate_up": 0},
    }
    assert list(traffic(NAMES, train, evaluate)) == ["a", "c"]


def test_a_failure_has_its_phase_and_the_last_line_of_its_reason():
    failed = PhaseStats(failures=[ClientFailure(2, "Traceback\nOSError: gone", "refused")])
    (found,) = failures(NAMES, PhaseStats(), failed)
    assert found == {"client": "c", "partition": 2, "phase": "evaluate", "kind": "refused", "reason": "OSError: gone"}
