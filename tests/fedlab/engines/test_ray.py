"""The connection to Ray, and what is left of it; what runs on a cluster is in ``test_ray_cluster.py``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedlab.config.engine_options import RayConfig
from fedlab.engines import processes, ray
from fedlab.engines.pool_worker import Setup
from fedlab.engines.worker_processes import WorkerStarter
from fedlab.errors import ConfigError, RunError
from waiting import wait_until

SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background has it ignored
sys.path[:0] = {path!r}
from pathlib import Path
from fedlab.engines import ray
from fedlab.engines.client_host import node_partitions
from fedlab.engines.pool_worker import Setup

setup = Setup("pool_apps:app", {{}}, node_partitions(2), 1, 1, vectorize=0)
with ray.open_grid(setup, {options!r}, Path({folder!r})):
    print("there is an actor", flush=True)
    signal.pause()
"""
PRIVATE = RayConfig(address="", cpus=1.0, gpus=0.0)


def test_gpus_that_a_private_ray_would_wait_for_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(ray, "usable_cpus", lambda: 8)
    ray.check_options(replace(PRIVATE, gpus=0.25))
    assert [ray._slots(replace(PRIVATE, cpus=cpus, gpus=gpus), 20) for cpus, gpus in ((1, 0), (1, 0.25), (16, 0))] == [
        8,
        4,
        1,
    ]
    with pytest.raises(ConfigError, match=r"a client takes 2 GPUs \(ray.gpus\), and this machine has 1"):
        ray.check_options(replace(PRIVATE, gpus=2.0))


def program(tmp_path, address):
    return ray._program(RayConfig(address=address, cpus=0.5, gpus=0.0), 3, tmp_path)


def test_a_private_ray_counts_places_and_a_cluster_its_cpus(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLAB_OWN", "a-secret")
    monkeypatch.chdir(tmp_path)
    for address, cpus, folder in (("", 1, str(tmp_path)), ("a:1", 0.5, "")):
        made = program(tmp_path, address)
        (options,) = made.arguments  # every user can read them
        assert json.loads(options) == {"address": address, "slots": 3, "cpus": cpus, "gpus": 0.0, "folder": folder}
        assert made.variables["RAY_ADDRESS"] == (address or "local") and made.variables[ray.BLAS_THREADS]


@pytest.mark.engine
def test_a_machine_of_another_version_starts_no_clients_and_says_so():
    from ray.exceptions import RayError

    from fedlab.engines.ray_workers import ClientActor, explain

    with pytest.raises(ConfigError, match="has fedlab .*, and the run has fedlab 9") as refused:
        ClientActor(Setup("no:app", {}, {}, 1, 1, vectorize=0), "fedlab 9 on Python 3.11", "")
    said = explain(RayError(f"The actor died\nTraceback:\nfedlab.errors.ConfigError: {refused.value}\n"))
    assert f"for this client: {refused.value}. All machines need fedlab" in said


@pytest.mark.engine
def test_the_end_of_the_connection_is_told_as_the_loss_of_the_cluster_where_its_head_is_gone(tmp_path):
    (port,) = processes.free_ports(1)
    for address, sentence in ((f"127.0.0.1:{port}", "127.0.0.1:.* is gone.*Start it again"), ("", "connected to Ray")):
        starter = WorkerStarter(replace(program(tmp_path, address), entry="os:_exit", arguments=()))
        ours, theirs = socket.socketpair()
        with ours, pytest.raises(RunError, match=sentence), starter.running(tmp_path / "log"):
            starter.start(theirs, lambda: None)
    assert os.listdir(tmp_path) == []  # an empty log is deleted


def left() -> dict[int, str]:
    """Processes that carry the mark of any run of these tests: process id -> command line."""
    worker = f"PYTEST_XDIST_WORKER={os.environ.get('PYTEST_XDIST_WORKER', '')}".encode()  # another may test the same
    marked = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (entry / "environ").read_bytes()
            if f"{processes.MARKER_ENV}=fedlab-".encode() in environment and (
                worker[-1:] == b"=" or worker in environment
            ):
                marked[int(entry.name)] = (entry / "cmdline").read_text()
    return marked


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_us(number: signal.Signals, tmp_path: Path) -> None:
    script = SCRIPT.format(path=sys.path, options=PRIVATE, folder=str(tmp_path)).replace("RayConfig(", "ray.RayConfig(")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True) as us:
        assert us.stdout is not None
        assert us.stderr is not None
        assert "there is an actor" in us.stdout.readline(), us.stderr.read()
        assert any("raylet" in command for command in left().values())
        us.send_signal(number)
        error = us.stderr.read()
        code = us.wait(20)
    assert code == -number
    assert ("KeyboardInterrupt" in error) == (number == signal.SIGINT)
    limit = 0 if number == signal.SIGINT else 15  # killed, we leave it to the process that is connected to Ray
    wait_until(lambda: left() == {}, "the end of all processes", limit)
