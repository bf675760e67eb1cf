"""The table of engines: what carries the messages between one ServerApp and its ClientApps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlab.config.schema import Flat, Grpc, Ray, build
from fedlab.errors import ConfigError, suggest


@dataclass(frozen=True)
class Apps:
    """Flower's two apps as import references, ``module:attribute``."""

    server: str
    client: str


@dataclass(frozen=True)
class Engine:
    """One line of the table of engines; ``run`` returns when the federation has ended, or raises."""

    summary: str
    run: Callable[[Apps, Flat, int, Path], None]  # apps, knobs, number of clients, run directory
    clients_see_gpu: Callable[[Flat], bool]  # whether clients see the server's GPU
    simulates_clients: bool = True  # whether clients run on this machine, on data that it can read
    check: Callable[[Flat], None] = lambda flat: None  # raises what would stop a run before it begins


def _inprocess(apps: Apps, flat: Flat, clients: int, directory: Path) -> None:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.supercore.object_ref import load_app

    from fedlab.engines import inprocess

    server, client = load_app(apps.server, Exception), load_app(apps.client, Exception)
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
    """One line of the table.

    Raises
    ------
    ConfigError
        When there is no such engine, with the near match.
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}; {suggest(name, ENGINES)}")
    return ENGINES[name]
