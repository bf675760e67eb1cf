"""Ray engine: a pool whose workers are actors, in a Ray of this machine or on a cluster that others use, too.

The server is in this process. The connection to Ray is in another one (``ray_workers.py``), since Ray ends the process
whose cluster has gone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from fedlab.config.engine_options import RayConfig
from fedlab.config.schema import Config
from fedlab.engines.inprocess import run_on
from fedlab.engines.pool import WORKER_LOG, PoolGrid
from fedlab.engines.pool_worker import Setup
from fedlab.engines.processes import usable_cpus
from fedlab.engines.ray_cluster import (
    BLAS_THREADS,
    Node,
    RayCluster,
    check_installed,
    driver_environment,
    gone,
    is_gone,
    probe,
)
from fedlab.engines.spec import Apps
from fedlab.engines.worker_processes import WorkerProgram
from fedlab.errors import ConfigError
from fedlab.runs.directory import RUN_DIRECTORY

RECENT_SECONDS = 60.0  # in which a cluster is looked at once: a comparison checks each of its cells


def run_config(apps: Apps, config: Config, directory: Path) -> None:
    """Run a configured federation whose clients are Ray actors."""
    run_on(open_grid, config.engine, apps, config, directory)


def check_options(options: RayConfig) -> None:
    """Look at the cluster that a run is to join, or for the GPUs of this machine that its clients would reserve.

    Raises
    ------
    ConfigError
        When Ray is not installed, the cluster does not answer or is of another version, or no node of it, or not this
        machine, has room for a client.
    """
    check_installed()
    if not options.address:
        if options.gpus > (here := torch.cuda.device_count()):  # Ray would wait for them
            raise ConfigError(
                f"a client takes {options.gpus:g} GPUs (ray.gpus), and this machine has {here} for torch; set "
                "ray.gpus=0, or ray.address to a cluster that has them"
            )
        return
    cluster = recent(options.address)
    if not cluster.slots(options.cpus, options.gpus):
        raise ConfigError(
            f"a client takes {options.cpus:g} CPUs and {options.gpus:g} GPUs, and no node of the Ray cluster at "
            f"{options.address} has as many ({cluster.describe()}); set ray.cpus or ray.gpus"
        )


def recent(address: str) -> RayCluster:
    """Return what was seen of a cluster within the last minute.

    Raises
    ------
    ConfigError
        As :func:`fedlab.engines.ray_cluster.probe`.
    """
    return _recent(address, time.monotonic() // RECENT_SECONDS)


@lru_cache(maxsize=4)
def _recent(address: str, period: float) -> RayCluster:
    return probe(address)


@contextmanager
def open_grid(setup: Setup, options: RayConfig, directory: Path) -> Iterator[PoolGrid]:
    """Yield a grid whose clients are Ray actors, once there is one; what they print is in ``workers.log``.

    Parameters
    ----------
    setup
        The client app, and all that its processes need.
    directory
        The run directory.

    Raises
    ------
    ConfigError
        When the cluster cannot be joined.
    RunError
        When the connection to Ray ends, for instance with the cluster.
    """
    slots = _slots(options, len(setup.partitions))
    grid = PoolGrid(setup, slots, [setup.environment], _program(options, slots, directory))
    with grid.running(directory / WORKER_LOG):
        grid.prepare()
        yield grid


def _slots(options: RayConfig, clients: int) -> int:
    """Return how many clients run at the same time: by the processors of this machine, or what the cluster has."""
    if options.address:
        return max(1, min(clients, recent(options.address).slots(options.cpus, options.gpus)))
    here = Node("", usable_cpus(), torch.cuda.device_count())
    return max(1, min(clients, RayCluster("", (here,), here.cpus, here.gpus).slots(options.cpus, options.gpus)))


def _program(options: RayConfig, slots: int, directory: Path) -> WorkerProgram:
    threads = {BLAS_THREADS: os.environ.get(BLAS_THREADS, str(usable_cpus()))}
    driver = {
        "address": options.address,
        "slots": slots,
        "cpus": options.cpus if options.address else 1,  # a private Ray counts places
        "gpus": options.gpus,
        "folder": "" if options.address else os.getcwd(),
    }

    def has_ended(log: Path) -> str:
        if options.address and is_gone(options.address):
            return (
                f"{gone(options.address)}. Start it again, then go on with the run (`fedlab resume`), or begin that of "
                f"a Flower app anew; what Ray said is in {log}"
            )
        return f"the process that is connected to Ray has ended; what it said is in {log}"

    return WorkerProgram(
        "fedlab.engines.ray_workers:serve_actors",
        (json.dumps(driver),),
        {**_variables(options.address), **threads, RUN_DIRECTORY: str(directory)},
        forks=False,
        has_ended=has_ended,
    )


def _variables(address: str) -> dict[str, str]:
    """Return environment variables of a process that connects to a cluster, or starts a private Ray if it is empty."""
    return {
        **(driver_environment() if address else {}),
        # "local" keeps Ray from joining a cluster that `ray start` left on this machine.
        "RAY_ADDRESS": address or "local",
        # Addresses of the loopback only; Ray has this switch for desktops, but it works everywhere.
        **({} if address else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",  # those workers lack the actors' environment and would sit idle
    }
