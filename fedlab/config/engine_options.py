"""Sections of the engines."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.sections import parse_section

SERVE_TIMEOUT = 600.0  # seconds that `fedlab serve` waits for all clients: people walk from machine to machine


@dataclass(frozen=True)
class RayConfig:
    """Clients as Ray actors."""

    address: str = Field("", description="address of a Ray cluster to join; empty: start a private one")
    cpus: float = Field(1.0, gt=0, allow_inf_nan=False, description="CPUs reserved for each client")
    gpus: float = Field(0.0, ge=0, allow_inf_nan=False, description="fraction of a GPU reserved for each client")


@dataclass(frozen=True)
class InProcessConfig:
    """All clients in this process and thread."""

    isolate: bool = Field(
        False, description="serialize every message as on a network, to find code that shares memory; slower"
    )


@dataclass(frozen=True)
class PoolConfig:
    """Clients in worker processes of this machine."""

    workers: int = Field(0, ge=0, description="processes; 0: one for each core, or as many as GPUs have places")
    clients_per_gpu: int = Field(1, ge=1, description="processes that share one GPU")


@dataclass(frozen=True)
class GrpcConfig:
    """Real clients over gRPC: where the server listens, and what it proves itself with."""

    address: str = Field("0.0.0.0:9092", description="host:port at which clients reach the server")
    certificates: str = Field("certs", description="folder of `fedlab certs`: the server's credentials, client keys")
    insecure: bool = Field(False, description="plain text, and clients that prove nothing")


DEFAULT_INPROCESS: InProcessConfig = parse_section(InProcessConfig, "inprocess", {})
DEFAULT_POOL: PoolConfig = parse_section(PoolConfig, "pool", {})
