"""The SuperNode's clock: it works only while Flower keeps its time as it does now, and this test would tell."""

from __future__ import annotations

import inspect
import time

from flwr.supernode import start_client_internal

from fedlab.engines import supernode


def test_flower_waits_by_the_module_that_we_replace():
    source = inspect.getsource(start_client_internal.start_client_internal)
    assert "time.sleep(3)" in source
    assert start_client_internal.__dict__["time"] is time


def test_the_clock_never_sleeps_long_and_tells_the_time(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    clock = supernode.CappedSleepClock()
    clock.sleep(3)
    clock.sleep(0.1)
    assert slept == [supernode.MAX_SLEEP, 0.1]
    assert clock.monotonic is time.monotonic
