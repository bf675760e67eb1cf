"""Table of engines: how messages travel between the ServerApp and its ClientApps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlab.config.schema import Flat, Grpc, Ray, build
from fedlab.errors import ConfigError, near_match


@dataclass(frozen=True)
class Apps:
    """Flower's two apps as import references, ``module:attribute``."""

    server: str
    client: str


@dataclass(frozen=True)
class Engine:
    """One row of the table of engines.

    Attributes
    ----------
    summary
        Description for ``fedlab list engines``.
    run
        Called with apps, knobs, number of clients and run directory; returns when the federation has ended, or raises.
    clients_see_gpu
        Called with knobs; True when clients see the server's GPU.
    simulates_clients
        True when clients run on this machine, on data that it can read.
    check
        Called with knobs; raises ConfigError for what would stop a run before it begins.
    """

    summary: str
    run: Callable[[Apps, Flat, int, Path], None]
    clients_see_gpu: Callable[[Flat], bool]
    simulates_clients: bool = True
    check: Callable[[Flat], None] = lambda flat: None


def _inprocess(apps: Apps, flat: Flat, clients: int, directory: Path) -> None:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    from fedlab.engines import inprocess
    from fedlab.engines.flower_internals import load_app

    server, client = load_app(apps.server), load_app(apps.client)
    assert isinstance(server, ServerApp) and isinstance(client, ClientApp)
    inprocess.run(server, client, dict(flat), clients)


def _ray(apps: Apps, flat: Flat, clients: int, directory: Path) -> None:
    from fedlab.engines import ray

    ray.run(
        apps, flat, partitions=clients, options=build(Ray, "ray", flat), directory=directory / "flower", timeout=None
    )


def _grpc(apps: Apps, flat: Flat, clients: int, directory: Path) -> None:
    from fedlab.engines import grpc

    grpc.run(apps, flat, options=build(Grpc, "grpc", flat), directory=directory)


def _grpc_check(flat: Flat) -> None:
    from fedlab.engines import grpc

    grpc.check(build(Grpc, "grpc", flat))


ENGINES: Mapping[str, Engine] = {
    "inprocess": Engine("this process; a network that is a function call (default)", _inprocess, lambda flat: True),
    "ray": Engine(
        "Flower's simulation: clients in Ray actors, behind a private SuperLink",
        _ray,
        lambda flat: build(Ray, "ray", flat).gpus > 0,
    ),
    "grpc": Engine(
        "real clients over gRPC: `fedlab serve` here, `fedlab join` there",
        _grpc,
        lambda flat: True,  # clients choose their own device, whatever the server's is
        simulates_clients=False,
        check=_grpc_check,
    ),
}


def find(name: str) -> Engine:
    """Return one row of the table.

    Raises
    ------
    ConfigError
        When there is no such engine, with the near match.
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}; {near_match(name, ENGINES)}")
    return ENGINES[name]
