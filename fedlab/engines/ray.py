"""Ray engine: Flower's simulation, whose clients are Ray actors, behind a private SuperLink.

**Source**: Flower 1.39, `flwr/simulation/app.py`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from fedlab.config.engine_options import RayConfig
from fedlab.config.schema import Config
from fedlab.engines.flower_control import Simulation
from fedlab.engines.processes import usable_cpus
from fedlab.engines.ray_cluster import (
    SHARED_CLUSTER,
    RayCluster,
    check_installed,
    driver_environment,
    gone,
    is_gone,
    probe,
)
from fedlab.engines.spec import Apps, flower_config
from fedlab.engines.superlink import check_apps, follow, submit, superlink
from fedlab.errors import ConfigError, RunError
from fedlab.runs.directory import RUN_DIRECTORY

RECENT_SECONDS = 60.0  # in which a cluster is looked at once: a comparison checks each of its cells


def run_config(apps: Apps, config: Config, directory: Path) -> None:
    """Run a configured federation in Flower's simulation."""
    run(
        apps,
        flower_config(config),
        partitions=len(config.clients),
        options=config.engine,
        directory=directory / "flower",
        environment={RUN_DIRECTORY: str(directory)},
    )


def check_options(options: RayConfig) -> None:
    """Look at the cluster that a run is to join.

    Raises
    ------
    ConfigError
        When Ray is not installed, or the cluster does not answer, is of another version, or none of its nodes has room
        for a client.
    """
    check_installed()
    if not options.address:
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


def run(
    apps: Apps,
    config: Mapping[str, str],
    *,
    partitions: int,
    options: RayConfig,
    directory: Path,
    timeout: float | None = None,
    echo: Callable[[str], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run the apps in Flower's simulation with one simulated SuperNode per partition; return once it completed.

    Parameters
    ----------
    config
        Run config, as both apps find it in ``context.run_config``.
    directory
        Receives ``flower.log`` and, if the run failed, Ray's logs.
    timeout
        Seconds; None for no limit.
    echo
        Called with what the apps print, while they run.
    environment
        Variables for the apps' processes.

    Raises
    ------
    ConfigError, RunError
        When the simulation cannot run, or did not complete.
    """
    _check(apps, partitions, options)
    if options.address:
        simulation = Simulation(partitions, int(options.cpus), options.gpus)
    else:
        # Flower takes whole CPUs per client and starts an actor wherever one fits, however few the partitions. In a
        # private Ray CPUs are only numbers: one for each client that may run at the same time.
        simulation = Simulation(partitions, 1, options.gpus, total_cpus=private_slots(options, partitions))
    variables = {**(environment or {}), SHARED_CLUSTER: options.address, **ray_variables(options.address)}
    with superlink(directory, simulation=True, environment=variables) as link:
        try:
            follow(link, submit(link, apps, config, simulation), process="flwr-simulation", timeout=timeout, echo=echo)
        except RunError as error:
            if options.address and is_gone(options.address):
                raise RunError(
                    f"{gone(options.address)}. Start it again, then go on with the run (`fedlab resume`).\n"
                    f"Full log: {link.log}"
                ) from error
            logs = link.scratch / "ray" / "session_latest" / "logs"
            if logs.is_dir():
                shutil.copytree(logs, directory / "ray-logs", dirs_exist_ok=True)
            raise


def ray_variables(address: str) -> dict[str, str]:
    """Return environment variables of processes that connect to a cluster, or start a private Ray if it is empty."""
    return {
        **(driver_environment() if address else {}),
        # "local" keeps Ray from joining a cluster that `ray start` left on this machine.
        "RAY_ADDRESS": address or "local",
        # Addresses of the loopback only; Ray has this switch for desktops, but it works everywhere.
        **({} if address else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",  # those workers lack the actors' environment and would sit idle
    }


def private_slots(options: RayConfig, clients: int) -> int:
    """Return how many clients run at the same time in a Ray of this machine alone."""
    return min(clients, max(1, int(usable_cpus() / options.cpus)))


def _check(apps: Apps, partitions: int, options: RayConfig) -> None:
    """Raise ConfigError at once for what would fail slowly: Flower tries for ten seconds to import a client app."""
    if partitions < 1:
        raise ConfigError(f"The simulation needs at least 1 partition, got {partitions}.")
    if options.address and options.cpus != max(1, int(options.cpus)):
        raise ConfigError(f"On a shared Ray cluster Flower takes whole CPUs per client, got ray.cpus = {options.cpus}.")
    check_installed()
    check_apps(apps)
