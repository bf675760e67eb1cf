"""Ray for the clients of any app: a pool whose workers are actors, on this machine or on a cluster.

The server is in this process. The connection to Ray is in another one (``ray_workers.py``), since Ray ends the process
whose cluster has gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlab.config.engine_options import RayConfig
from fedlab.engines.pool import WORKER_LOG, PoolGrid
from fedlab.engines.pool_worker import Setup
from fedlab.engines.processes import usable_cpus
from fedlab.engines.ray import private_slots, ray_variables, recent
from fedlab.engines.ray_cluster import BLAS_THREADS, gone, is_gone
from fedlab.engines.worker_processes import WorkerProgram
from fedlab.runs.directory import RUN_DIRECTORY


@contextmanager
def open_grid(setup: Setup, options: RayConfig, directory: Path) -> Iterator[PoolGrid]:
    """Yield a grid whose clients are Ray actors; what they print is in ``workers.log``.

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
    """
    slots = _slots(options, len(setup.partitions))
    grid = PoolGrid(setup, slots, [setup.environment], _program(options, slots, directory))
    with grid.running(directory / WORKER_LOG):
        yield grid


def _slots(options: RayConfig, clients: int) -> int:
    if not options.address:
        return private_slots(options, clients)
    return max(1, min(clients, recent(options.address).slots(options.cpus, options.gpus)))


def _program(options: RayConfig, slots: int, directory: Path) -> WorkerProgram:
    threads = {BLAS_THREADS: os.environ.get(BLAS_THREADS, str(usable_cpus()))}
    driver = {
        "address": options.address,
        "slots": slots,
        "cpus": options.cpus if options.address else 1,
        "gpus": options.gpus,
    }

    def has_ended(log: Path) -> str:
        if options.address and is_gone(options.address):
            return f"{gone(options.address)}. Start it again, then the run; what Ray said is in {log}"
        return f"the process that is connected to Ray has ended; what it said is in {log}"

    return WorkerProgram(
        "fedlab.engines.ray_workers:serve_actors",
        (json.dumps(driver),),
        {**ray_variables(options.address), **threads, RUN_DIRECTORY: str(directory)},
        forks=False,
        has_ended=has_ended,
    )
