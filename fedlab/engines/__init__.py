"""Engines: what carries the messages between one ServerApp and its ClientApps."""

from __future__ import annotations

from fedlab.config.engine_options import GrpcConfig, InProcessConfig, PoolConfig, RayConfig
from fedlab.engines.spec import EngineSpec

LOCAL = EngineSpec("fedlab.engines.local:run_config", uses_objects=True, vectorizes=True)
INPROCESS = EngineSpec(
    "fedlab.engines.inprocess:run_config",
    InProcessConfig,
    clients="fedlab.engines.inprocess:open_grid",
    uses_objects=True,
    vectorizes=True,
)
POOL = EngineSpec(
    "fedlab.engines.pool:run_config", PoolConfig, clients="fedlab.engines.pool:open_grid", vectorizes=True
)
RAY = EngineSpec(
    "fedlab.engines.ray:run_config",
    RayConfig,
    "fedlab.engines.ray:check_options",
    "fedlab.engines.ray:open_grid",
    clients_see_gpu=lambda options: bool(options.gpus > 0),
    reserves=lambda options: (options.cpus, options.gpus) if options.address else (0.0, 0.0),
)
GRPC = EngineSpec(  # clients choose their own device, whatever the server's is
    "fedlab.engines.grpc:run_config", GrpcConfig, "fedlab.engines.grpc:check", simulates_clients=False
)
