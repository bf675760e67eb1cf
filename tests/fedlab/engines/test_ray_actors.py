"""The pool of Ray actors: who waits for one is woken, a lost one is replaced, and what cannot start is told to all.

Futures stand in for the references of Ray, and no cluster starts; one is in test_ray_cluster.py.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from itertools import count
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError, RayError

from fedlab.engines import ray_actors
from fedlab.engines.ray_actors import MAX_FAILED_STARTS, MAX_LOSSES, ActorPool, GivenUp


class SlowToClear(threading.Event):
    """An event that leaves time for another thread before it is cleared."""

    def clear(self):
        time.sleep(0.005)
        super().clear()


class Method:
    """A method of an actor, whose reference is done with a value, with an error, or later."""

    def __init__(self, outcome):
        self.outcome = outcome

    def remote(self):
        future = Future()
        if isinstance(self.outcome, Exception):
            future.set_exception(self.outcome)
        elif self.outcome is not None:
            future.set_result(self.outcome)
        return future


class Actor:
    def __init__(self, number, start):
        self.number, self.__ray_ready__ = number, Method(start)


class Cluster:
    """Ray's functions that a pool calls, and the actors that were asked for; starts as planned, then at once."""

    def __init__(self, *starts):
        self.starts, self.numbers, self.created, self.killed = list(starts), count(), [], []

    def create(self):
        self.created.append(Actor(next(self.numbers), self.starts.pop(0) if self.starts else True))
        return self.created[-1]

    @staticmethod
    def wait(references, num_returns, timeout):
        done = wait(references, timeout=timeout, return_when="FIRST_COMPLETED").done
        newest_first = [one for one in reversed(references) if one in done]  # Ray promises no order
        return newest_first[:num_returns], [one for one in references if one not in done]

    @staticmethod
    def get(reference):
        return reference.result(timeout=5)

    @staticmethod
    def available_resources():
        return {"CPU": 9.0}

    def kill(self, actor):
        self.killed.append(actor.number)


@pytest.fixture
def make(monkeypatch):
    """A pool on a cluster whose starts are planned, and an event that ends every wait after seconds."""
    pools, stopped = [], threading.Event()
    guard = threading.Timer(10, stopped.set)  # a lost wake-up fails a test, it does not hang
    guard.start()
    monkeypatch.setattr(ray_actors, "POLL_SECONDS", 0.01)

    def pool(number, *starts):
        cluster = Cluster(*starts)
        monkeypatch.setattr(ray_actors, "ray", cluster)
        pools.append(ActorPool(cluster.create, number, 1.0, 0.0))
        return pools[-1], cluster, stopped.is_set

    yield pool
    guard.cancel()
    for one in pools:
        one.close()


def result(value):
    return lambda actor: Method(value).remote()


def test_each_actor_that_is_asked_for_is_found_also_when_the_watcher_goes_to_sleep_meanwhile(make, monkeypatch):
    slow = SimpleNamespace(Event=SlowToClear, Lock=threading.Lock, Thread=threading.Thread)
    monkeypatch.setattr(ray_actors, "threading", slow)
    pool, cluster, stopped = make(2)
    for _ in range(40):
        pool.replace(pool.take(stopped))
    assert {pool.take(stopped).number, pool.take(stopped).number} == {40, 41}
    assert sorted(cluster.killed) == list(range(40)) and pool._living == 2


def test_a_call_goes_to_a_free_actor_and_an_error_of_the_call_costs_none(make):
    pool, cluster, stopped = make(1)
    assert pool.run(result("done"), stopped, pytest.fail) == "done"
    with pytest.raises(ValueError, match="its own"):
        pool.run(result(ValueError("its own")), stopped, pytest.fail)
    assert pool.take(stopped) is cluster.created[0] and not cluster.killed


def test_a_lost_actor_is_replaced_and_its_call_repeated_until_it_is_the_call_that_ends_them(make):
    pool, cluster, stopped = make(1)
    told, outcomes = [], [RayActorError(), "done"]
    assert pool.run(lambda actor: Method(outcomes.pop(0)).remote(), stopped, told.append) == "done"
    assert len(told) == 1 and cluster.killed == [0]
    with pytest.raises(RayActorError):
        pool.run(result(RayActorError()), stopped, told.append)
    assert len(told) == MAX_LOSSES and cluster.killed == list(range(1 + MAX_LOSSES))
    assert pool.run(result("again"), stopped, pytest.fail) == "again"


def test_starts_that_fail_in_a_row_are_told_to_everyone_who_waits(make):
    pool, cluster, stopped = make(1, *[RayError("no room")] * MAX_FAILED_STARTS)
    for _ in range(3):
        with pytest.raises(RayError, match="no room"):
            pool.take(stopped)
    assert len(cluster.created) == MAX_FAILED_STARTS


def test_a_start_in_between_begins_the_count_anew_and_a_living_actor_keeps_the_run(make):
    few = [RayError("no room")] * (MAX_FAILED_STARTS - 1)
    pool, _, stopped = make(1, *few, True, *few, True)
    first = pool.take(stopped)
    pool.replace(first)
    assert pool.take(stopped).number == 2 * MAX_FAILED_STARTS - 1
    pool, _, stopped = make(2, True, *[RayError("no room")] * MAX_FAILED_STARTS)
    assert all(pool.run(result(number), stopped, pytest.fail) == number for number in range(20))


def test_an_actor_at_work_that_nobody_waits_for_is_replaced(make):
    pool, cluster, stopped = make(1)
    with pytest.raises(GivenUp):
        pool.run(result(None), lambda: True, pytest.fail)  # its result never comes
    assert cluster.killed == [0] and pool.take(stopped).number == 1


def test_who_waits_goes_when_nobody_wants_the_result_and_is_told_when_the_cluster_is_gone(make):
    pool, cluster, stopped = make(1, None)  # it never starts
    for wait_for_it in (lambda: pool.take(lambda: True), lambda: pool.wait_for_one("", lambda: True)):
        with pytest.raises(GivenUp):
            wait_for_it()

    def gone(*arguments, **options):
        raise ConnectionError("the head is gone")

    cluster.wait = gone
    with pytest.raises(ConnectionError, match="the head is gone"):
        pool.take(stopped)
