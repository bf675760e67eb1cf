"""Look at a Ray cluster, in a process of its own: Ray waits long for a head that is gone, and may end its process.

``python ray_probe.py ADDRESS`` prints one JSON line: nodes, or the error. It is run as a file, so that it imports Ray
and nothing else.
"""

from __future__ import annotations

import importlib
import json
import logging
import socket
import sys
from typing import Any

AUTO = "auto"
CONNECT_SECONDS = 5.0


def unknown_head() -> str | None:
    """Return why ``auto`` finds no head, "" where this machine knows of none; None if something listens there.

    Ray itself asks a head that is gone for 20 seconds.
    """
    services: Any = importlib.import_module("ray._private.services")
    try:
        head = str(services.canonicalize_bootstrap_address(AUTO) or "")
    except ConnectionError:
        head = ""
    if not head:
        return ""
    host, _, port = head.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError:
        return f"the head of the last one, {head}, does not listen"
    return None


def main(address: str) -> None:
    """Print what the cluster has and what is free, or why it cannot be joined."""
    try:
        ray: Any = importlib.import_module("ray")
        if address == AUTO and (reason := unknown_head()) is not None:
            print(f"\n{json.dumps({'error': reason})}", flush=True)
            return
        ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
        free = ray.available_resources()
        nodes = [
            {"name": node["NodeManagerHostname"], "cpus": own.get("CPU", 0), "gpus": own.get("GPU", 0)}
            for node in ray.nodes()
            if node["Alive"] and (own := node["Resources"]) is not None
        ]
        found: dict[str, Any] = {"nodes": nodes, "free_cpus": free.get("CPU", 0), "free_gpus": free.get("GPU", 0)}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    print(f"\n{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
