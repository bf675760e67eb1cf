"""Default engine: this machine, with worker processes where they help. The results have the same bits."""

from __future__ import annotations

from pathlib import Path

from fedlab.config.engine_options import DEFAULT_POOL
from fedlab.config.resolve import FEW_CLIENTS, clients_in_a_round
from fedlab.config.schema import Config
from fedlab.engines.inprocess import run_config as run_in_this_process
from fedlab.engines.pool import number_of_workers
from fedlab.engines.pool import run_config as run_in_pool
from fedlab.engines.spec import Apps
from fedlab.plugins import exists_here_only
from fedlab.runs.manifest import update_manifest


def run_config(apps: Apps, config: Config, directory: Path) -> None:
    """Run a configured federation with the engine that suits it; the manifest says which one that is."""
    pooled = uses_pool(config)
    update_manifest(directory, engine_chosen="pool" if pooled else "inprocess")
    (run_in_pool if pooled else run_in_this_process)(apps, config, directory)


def uses_pool(config: Config) -> bool:
    """Return True if clients run in processes of their own.

    That is where more than a few clients take part in a round, there is more than one place for a process, and
    workers can find what the run uses: an object of this process they cannot.
    """
    if clients_in_a_round(config) <= FEW_CLIENTS:
        return False
    if any(exists_here_only(plugin.reference) for plugin in config.plugins.values()):
        return False
    return number_of_workers(DEFAULT_POOL, len(config.clients)) > 1
