"""Client of a SuperLink's Control API, and what it starts runs with.

**Source**: Flower 1.39, flwr/supercore/control, flwr/cli/run/run.py, flwr/cli/build.py.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import tomli_w
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest, StreamLogsRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab


class ControlError(Exception):
    """A request to a SuperLink's Control API that failed."""


@dataclass(frozen=True)
class Outcome:
    """End of a run: whether it completed, Flower's word for it, and details."""

    completed: bool
    status: str
    details: str


class Control:
    """Client of a SuperLink's Control API; each method raises ControlError when the request fails.

    Parameters
    ----------
    address
        host:port.
    authority
        Certificate of the authority that signed the server's; None for plain text.
    """

    def __init__(self, address: str, authority: Path | None) -> None:
        # Flower's own client would use a proxy of the environment also for the loopback.
        with _without_proxies():
            self._api = ControlHttpClient.from_server_address(address, authority is None, None, [])
        verify = ssl.create_default_context(cafile=authority) if authority else False
        self._api._client = httpx.Client(verify=verify, trust_env=False, timeout=30.0)

    def start_run(self, server_app: str, client_app: str, config: Mapping[str, Any]) -> int:
        """Start a run of two installed apps and return its id; the bundle is a pyproject.toml alone."""
        from flwr.cli.build import build_fab_from_files  # 1 s

        app = {
            "publisher": "fedlab",
            "components": {"serverapp": server_app, "clientapp": client_app},
            "config": dict(config),  # dotted keys are quoted, and Flower leaves them as they are
        }
        project = {"project": {"name": "fedlab-run", "version": "0.0.0"}, "tool": {"flwr": {"app": app}}}
        bundle, _ = build_fab_from_files({"pyproject.toml": tomli_w.dumps(project).encode()})
        fab = fab_to_proto(Fab(sha256(bundle).hexdigest(), bundle, {}))
        with _as_control_error():
            reply = self._api.StartRun(StartRunRequest(fab=fab))
        if not reply.HasField("run_id"):
            raise ControlError("it gave the run no id")
        return int(reply.run_id)

    def register_node(self, name: str, public_key: bytes) -> int:
        """Register a SuperNode's public key (PEM) and return the id that the node will have."""
        with _as_control_error():
            return int(self._api.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def outcome(self, run_id: int) -> Outcome | None:
        """Return how a run has ended; None while it goes on."""
        with _as_control_error():
            status = self._api.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        if status.status != Status.FINISHED:
            return None
        return Outcome(status.sub_status == SubStatus.COMPLETED, status.sub_status, status.details)

    def stream_logs(self, run_id: int) -> Iterator[str]:
        """Yield what a run prints, until it ends."""
        with _as_control_error():
            for part in self._api.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=0.0)):
                yield part.log_output

    def close(self) -> None:
        """Close the connections; requests are no longer possible."""
        self._api.close()


@contextmanager
def _without_proxies() -> Iterator[None]:
    """Hide the proxies of the environment: httpx raises where it cannot use one, as it does with SOCKS."""
    hidden = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _as_control_error() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise ControlError(str(error)) from error
