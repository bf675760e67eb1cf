"""The table of strategies: one federated algorithm per module, both halves in it."""

from __future__ import annotations

from collections.abc import Mapping

from fedlab.config import Core, Flat, build
from fedlab.errors import ConfigError, near_match
from fedlab.training import Progress, silent
from fedlab.workload import Workload
from strategies import dualadapt, fedavg, fedprox, source_only, startup
from strategies.protocol import ClientHalf, Entry, Local, ServerHalf

__all__ = ["STRATEGIES", "ClientHalf", "Entry", "Local", "ServerHalf", "client_half", "find", "make"]

STRATEGIES: Mapping[str, Entry] = {
    "dualadapt": dualadapt.ENTRY,
    "source_only": source_only.ENTRY,
    "fedavg": fedavg.ENTRY,
    "fedprox": fedprox.ENTRY,
    "startup": startup.ENTRY,
}


def find(name: str) -> Entry:
    """One line of the table.

    Raises
    ------
    ConfigError
        When there is no such strategy, with the near match.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"unknown strategy {name!r}; {near_match(name, STRATEGIES)}")
    return STRATEGIES[name]


def make(flat: Flat, workload: Workload, progress: Progress = silent) -> ServerHalf:
    """The server half named in a table of knobs.

    Raises
    ------
    ConfigError
        When there is no such strategy, a knob is wrong, or the strategy cannot serve the workload.
    """
    return find(build(Core, "", flat).strategy).server(workload, flat, progress)


def client_half(name: str) -> ClientHalf:
    """The client half of a strategy."""
    return find(name).client
