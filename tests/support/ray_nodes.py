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

VARIABLES = {  # of the cluster's processes and of those that connect to it
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # addresses of the loopback only; Ray has this switch for desktops
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}


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

    def hold(self) -> None:
        """Reserve the CPUs of both nodes for somebody else."""
        self._ask("hold")

    def release(self) -> None:
        """Give them back."""
        self._ask("release")

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
    os.mkdir(os.path.join(temporary, "ray"))  # Ray writes the head's address there, and does not make the folder
    pipe = subprocess.PIPE
    command = [sys.executable, __file__, temporary]
    environment = {**os.environ, **VARIABLES, "RAY_TMPDIR": temporary}
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
    import ray
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._common.usage.usage_lib import get_cluster_metadata
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster
    from ray.util import placement_group

    head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": temporary}
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    added = [cluster.add_node(num_cpus=1)]
    try:
        print(f"> {cluster.address}", flush=True)
        for line in sys.stdin:
            what, _, value = line.strip().partition(" ")
            if what == "add":
                added.append(cluster.add_node(num_cpus=1))
            elif what == "version":
                client = GcsClient(address=cluster.address)
                own = get_cluster_metadata(client)
                own["ray_version"] = value or ray.__version__
                client.internal_kv_put(CLUSTER_METADATA_KEY, json.dumps(own).encode(), True, KV_NAMESPACE_CLUSTER)
            elif what == "hold":
                ray.init(cluster.address, log_to_driver=False)
                ray.get(placement_group([{"CPU": 1}, {"CPU": 1}]).ready())
            elif what == "release":
                ray.shutdown()
            elif value == "head":
                cluster.head_node.kill_gcs_server()
            else:
                cluster.remove_node(added.pop(), allow_graceful=False)
            print("> done", flush=True)
    finally:  # of an error, too: no node outlives this process
        for node in (*added, cluster.head_node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main(sys.argv[1])
