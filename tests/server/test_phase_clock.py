"""Seconds of phases: one within another takes its time from it."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

from fedlab.server import phase_clock
from fedlab.server.phase_clock import PhaseClock


def test_a_phase_within_another_takes_its_seconds_from_it_and_an_error_ends_both(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(phase_clock, "time", SimpleNamespace(monotonic=lambda: now.seconds))

    def work(seconds):
        now.seconds += seconds

    clock = PhaseClock()
    with suppress(ValueError), clock("server"):
        work(2)
        for _ in range(2):
            with clock("clients"):
                work(5)
        work(1)
        with clock("server"):
            work(4)
            raise ValueError
    assert clock.seconds == {"server": 7, "clients": 10}
    clock.reset()
    assert clock.seconds == {}
