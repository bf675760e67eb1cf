"""Events of one cause: a burst, then a few, and how many were omitted."""

from __future__ import annotations

from fedlab.comm.event_rate import BURST, EVERY, EventRate


def test_a_burst_passes_then_one_in_a_while_which_says_how_many_were_omitted():
    now = [0.0]
    rate = EventRate(lambda: now[0])
    assert [rate.count("a") for _ in range(BURST)] == [0] * BURST
    assert [rate.count("a") for _ in range(7)] == [None] * 7
    assert rate.count("b") == 0  # each cause has its own
    now[0] = EVERY
    assert (rate.count("a"), rate.count("a")) == (7, None)
    now[0] += 1000 * EVERY
    assert [rate.count("a") for _ in range(BURST + 1)] == [1, *[0] * (BURST - 1), None]
