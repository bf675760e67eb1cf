"""Flower's command ``flwr-simulation``, which on a cluster that others use, too, begins when there is room.

**Source**: Flower 1.39, ``flwr/simulation/run_simulation.py``.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from typing import Any

from flwr.simulation import app

from fedlab.engines.ray_cluster import SHARED_CLUSTER

simulation: Any = importlib.import_module("flwr.simulation.run_simulation")  # the package has a function of this name
main_loop, start_server = simulation._main_loop, simulation.run_serverapp_th


def simulate() -> None:
    """Run the command in this process, with its arguments in ``sys.argv``."""
    if os.environ.get(SHARED_CLUSTER):
        simulation._main_loop = main_loop_on_cluster
    app.flwr_simulation()


def main_loop_on_cluster(num_supernodes: int, backend_name: str, backend_config: str, *args: Any) -> Any:
    """Wait until the cluster has room for a client, and run Flower's main loop with the actors of this run.

    The ServerApp starts after that: its time limits are not spent on waiting.
    """
    from flwr.server.superlink.fleet.vce.backend import raybackend  # imports Ray, which must not be in what is forked

    from fedlab.engines.flower_ray_backend import SharedRayBackend

    backend = SharedRayBackend(json.loads(backend_config), num_supernodes)

    def start(*args: Any, f_stop: threading.Event, **options: Any) -> Any:
        backend.stopped = f_stop  # set when the ServerApp ends: nobody waits for an actor then
        return start_server(*args, f_stop=f_stop, **options)

    simulation.run_serverapp_th = start
    raybackend.RayBackend = lambda _: backend  # type: ignore[assignment, misc]
    return main_loop(num_supernodes, backend_name, backend_config, *args)
