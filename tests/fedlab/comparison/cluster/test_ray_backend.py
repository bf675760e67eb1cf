"""Cells on a Ray cluster: what they reserve of it, and a cluster that is not there."""

from __future__ import annotations

import socket

import pytest

import toy
from fedlab import launch
from fedlab.comparison.cluster.backends import find_backend
from fedlab.comparison.plan import ComparisonRequest, plan_comparison
from fedlab.comparison.preset_work import PresetWork
from fedlab.comparison.workers import Task
from fedlab.config.resolve import with_options
from fedlab.engines import processes, ray, ray_cluster
from fedlab.engines.ray_cluster import Node, RayCluster
from fedlab.errors import ConfigError

SHARED = {"engine": "ray", "ray.address": "a:1"}  # clients are actors on the cluster


@pytest.fixture
def reached(monkeypatch):
    """Function of ``--on``: the backend of a cluster of two nodes, one of which has a GPU."""
    cluster = RayCluster("a:1", (Node("x", 2, 0), Node("y", 3, 1)), 5, 1)
    monkeypatch.setattr(ray_cluster, "probe", lambda address: cluster)
    monkeypatch.setattr(ray, "recent", lambda address: cluster)  # of the engine

    def reach(on):
        backend = find_backend(on)
        backend.reach()
        return backend

    return reach


def tasks(folder, number, **options):
    config = with_options(launch.prepare(toy.PLUGIN, {"threads": 1, **options}), {"device": "auto"})
    return [Task(folder / f"a-{seed}", PresetWork(config)) for seed in range(number)]


def test_cells_whose_clients_are_on_the_same_cluster_hold_nothing_of_it_and_leave_each_a_place(reached, tmp_path):
    backend = reached("ray:a:1")
    assert backend.check(tasks(tmp_path, 9)) == 9 and backend._resources(tasks(tmp_path, 1)[0]) == (1, 1)
    shared = tasks(tmp_path, 9, **SHARED)
    assert backend.check(shared) == 5 and backend._resources(shared[0]) == (0, 1)
    assert backend.check(tasks(tmp_path, 9, **{**SHARED, "ray.cpus": 2})) == 2
    assert backend._resources(tasks(tmp_path, 1, **{**SHARED, "ray.gpus": 0.5})[0]) == (0, 0)


def test_a_cell_that_is_to_hold_what_its_clients_wait_for_is_refused(reached, tmp_path):
    with pytest.raises(ConfigError, match="a cell would hold cpus that its own clients wait for.*leave out cpus"):
        reached("ray:a:1,cpus=1").check(tasks(tmp_path, 1, **SHARED))
    with pytest.raises(ConfigError, match="a cell takes 4 CPUs and 1 GPUs, and no node"):
        reached("ray:a:1,cpus=4").check(tasks(tmp_path, 1))


def test_a_head_that_is_not_there_is_told_once_before_any_cell_is_planned(monkeypatch):
    monkeypatch.setattr("fedlab.comparison.grid.plan_cells", None)
    (port,) = processes.free_ports(1)
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        plan_comparison(ComparisonRequest("dualadapt-digits", "source_only", 9, on=f"ray:127.0.0.1:{port}"))


def test_a_cluster_that_is_gone_is_asked_once_for_all_cells(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ray_cluster, "is_gone", lambda address: asked.append(address) or True)
    backend = find_backend("ray:127.0.0.1:1")
    backend._folder = tmp_path
    backend._driver = type("Ended", (), {"wait": lambda self: 1})()
    assert {backend._lost() for _ in range(3)} == {backend._lost()} and asked == ["127.0.0.1:1"]
    assert "the Ray cluster at 127.0.0.1:1 is gone" in backend._lost()


@pytest.mark.engine
def test_the_head_of_a_cluster_that_has_ended_is_told_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="this machine is no node of a Ray cluster that answers.*does not listen$"):
        ray_cluster.probe(ray_cluster.AUTO)
