"""A Ray cluster of several nodes on this machine, in a process of its own, which obeys lines of its stdin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray has this switch for desktops; drivers need it, too
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_gcs_rpc_server_reconnect_timeout_s": "5", **LOOPBACK_ONLY}


class RayNodes:
    """A head and other nodes, each with one CPU; ``address`` is that of the head."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.address = self._answer()

    def add(self) -> None:
        """Start another node."""
        self._ask("add")

    def kill(self) -> None:
        """Kill the node that was added last."""
        self._ask("kill")

    def kill_head(self) -> None:
        """Kill the process that knows the cluster."""
        self._ask("kill head")

    def pretend(self, version: str) -> None:
        """Let the cluster say that it was started with another version of Ray; "" for its own."""
        self._ask(f"version {version}")

    def _ask(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        while line := self.process.stdout.readline():
            if line.startswith("> "):
                return line[2:].strip()
        raise AssertionError("the cluster has ended")


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    """Yield a cluster of two nodes."""
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: it holds sockets
    pipe = subprocess.PIPE
    command = [sys.executable, __file__, temporary]
    environment = {**os.environ, **QUIET}
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as it:
        try:
            yield RayNodes(it)
        finally:
            it.stdin.close()
            it.wait(60)
            shutil.rmtree(temporary, ignore_errors=True)


def main(temporary: str) -> None:
    """Run the cluster until stdin closes."""
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": temporary}
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    added = [cluster.add_node(num_cpus=1)]
    print(f"> {cluster.address}", flush=True)
    metadata = (b"CLUSTER_METADATA", b"session")
    for line in sys.stdin:
        what, _, value = line.strip().partition(" ")
        if what == "add":
            added.append(cluster.add_node(num_cpus=1))
        elif what == "version":
            client = GcsClient(address=cluster.address)
            name, space = metadata
            own = json.loads(client.internal_kv_get(name, space))
            own["ray_version"] = value or sys.modules["ray"].__version__
            client.internal_kv_put(name, json.dumps(own).encode(), True, space)
        elif value == "head":
            cluster.head_node.kill_gcs_server()
        else:
            cluster.remove_node(added.pop(), allow_graceful=False)
        print("> done", flush=True)
    for node in (*added, cluster.head_node):
        node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main(sys.argv[1])
