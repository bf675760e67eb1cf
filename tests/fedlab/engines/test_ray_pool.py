"""The connection of a pool to Ray; what runs on a cluster is in ``test_ray_cluster.py``."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace

import pytest

from fedlab.config.engine_options import RayConfig
from fedlab.engines import processes, ray_pool
from fedlab.engines.pool_worker import Setup
from fedlab.engines.worker_processes import WorkerStarter
from fedlab.errors import ConfigError, RunError


def program(tmp_path, address):
    return ray_pool._program(RayConfig(address=address, cpus=0.5, gpus=0.0), 3, tmp_path)


def test_a_private_ray_counts_places_and_a_cluster_its_cpus(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLAB_OWN", "a-secret")
    for address, cpus in (("", 1), ("a:1", 0.5)):
        made = program(tmp_path, address)
        (options,) = made.arguments  # every user can read them
        assert json.loads(options) == {"address": address, "slots": 3, "cpus": cpus, "gpus": 0.0}
        assert made.variables["RAY_ADDRESS"] == (address or "local") and made.variables[ray_pool.BLAS_THREADS]


@pytest.mark.engine
def test_a_machine_of_another_version_starts_no_clients_and_says_so():
    from ray.exceptions import RayError

    from fedlab.engines.ray_workers import ClientActor, explain

    with pytest.raises(ConfigError, match="has fedlab .*, and the run has fedlab 9") as refused:
        ClientActor(Setup("no:app", {}, {}, 1, 1, vectorize=0), "fedlab 9 on Python 3.11")
    said = explain(RayError(f"The actor died\nTraceback:\nfedlab.errors.ConfigError: {refused.value}\n"))
    assert f"for this client: {refused.value}. All machines need fedlab" in said


@pytest.mark.engine
def test_the_end_of_the_connection_is_told_as_the_loss_of_the_cluster_where_its_head_is_gone(tmp_path):
    (port,) = processes.free_ports(1)
    for address, sentence in ((f"127.0.0.1:{port}", "127.0.0.1:.* is gone.*Start it again"), ("", "connected to Ray")):
        starter = WorkerStarter(replace(program(tmp_path, address), entry="os:_exit", arguments=()))
        ours, theirs = socket.socketpair()
        with ours, theirs, starter.running(tmp_path / "log"), pytest.raises(RunError, match=sentence):
            starter.start(theirs.fileno())
    assert os.listdir(tmp_path) == []  # an empty log is deleted
