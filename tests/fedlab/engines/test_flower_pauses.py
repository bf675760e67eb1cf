"""Time in which a process of Flower's stood still does not count, and any other does."""

from __future__ import annotations

from importlib import import_module

import pytest
from flwr.common.constant import Status
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from fedlab.engines import flower_pauses
from fedlab.engines.flower_pauses import RunningClock


@pytest.fixture
def clock(monkeypatch):
    """The clock by which Flower's states judge, and the time of day, in a list."""
    for name in flower_pauses.LINK_STATES:
        module = import_module(name)
        monkeypatch.setattr(module, "now", module.now)  # restored at the end; each of them has one
    day = [1_800_000_000.0]
    monkeypatch.setattr(flower_pauses.time, "time", lambda: day[0])
    clock = RunningClock()
    flower_pauses.judge_by(clock, flower_pauses.LINK_STATES)
    return clock, day


def running_app():
    """A state with an app that runs, and the app's token."""
    state = InMemoryNodeState(InMemoryObjectStore())
    task = state.create_task("clientapp", 1)
    token = state.claim_task(task)
    assert state.activate_task(task)
    return state, token


@pytest.mark.parametrize("ticked", [False, True])
def test_an_app_outlives_a_pause_of_its_process(clock, ticked):
    clock, day = clock
    state, token = running_app()
    day[0] += 3600
    if ticked:  # the thread that ticks was woken first
        clock.timestamp()
    assert state.get_task_by_token(token).status.status == Status.RUNNING
    assert state.get_task_by_token(token) is not None
    assert clock.paused == 3600


def test_an_app_that_is_silent_while_its_process_runs_is_given_up(clock):
    clock, day = clock
    state, token = running_app()
    for _ in range(15):  # a machine with much to do
        day[0] += flower_pauses.PAUSE / 2
        clock.timestamp()
    assert clock.paused == 0
    assert state.get_task_by_token(token) is None


def test_a_clock_that_is_set_back_changes_nothing(clock):
    clock, day = clock
    day[0] -= 3600
    assert clock.timestamp() == day[0]
    assert clock.now().timestamp() == day[0]
