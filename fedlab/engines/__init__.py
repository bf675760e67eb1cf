"""Engines: what carries the messages between one ServerApp and its ClientApps."""

from __future__ import annotations

from fedlab.config.schema import GrpcConfig, InProcessConfig, PoolConfig, RayConfig
from fedlab.engines.spec import EngineSpec

LOCAL = EngineSpec("fedlab.engines.local:run_config", vectorizes=True)
INPROCESS = EngineSpec("fedlab.engines.inprocess:run_config", InProcessConfig, vectorizes=True)
POOL = EngineSpec("fedlab.engines.pool:run_config", PoolConfig, vectorizes=True)
RAY = EngineSpec(
    "fedlab.engines.ray:run_config",
    RayConfig,
    "fedlab.engines.ray:check_config",
    clients_see_gpu=lambda options: bool(options.gpus > 0),
)
GRPC = EngineSpec(  # clients choose their own device, whatever the server's is
    "fedlab.engines.grpc:run_config", GrpcConfig, "fedlab.engines.grpc:check_config", simulates_clients=False
)
