"""Flower's private parts that fedlab uses, each with a canary test in ``test_flower_internals.py``.

Flower exports no way to do these things. When a new version of Flower moves or changes one of them, its canary fails,
and this is the only module to change. Imports of a second and more are inside the functions that need them.

**Source**: Flower 1.39, named at each part.
"""

from __future__ import annotations

import functools
import inspect
import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import httpx
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest, StreamLogsRequest
from flwr.proto.federation_config_pb2 import SimulationConfig
from flwr.server import Server
from flwr.server import server as server_module
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import object_ref
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run as Run
from flwr.supercore.run import RunNotRunningException as RunNotRunning
from flwr.supercore.task_identity import TaskIdentity

from fedlab.errors import FedlabError

if TYPE_CHECKING:  # its import takes a second
    from flwr.superlink.grid.http_grid import HttpGrid

__all__ = ["Run", "RunNotRunning"]

# --- messages in one process: flwr/supercore/{task_identity,run}.py, flwr/app/{metadata,message/typeddict}.py ---


@contextmanager
def task_identity(run_id: int, node_id: int, task_id: int = 1) -> Iterator[None]:
    """Set the process-wide identity, without which no ``Message`` can be made, while the context lasts."""
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as Flower's in-memory grid does."""
    message.metadata.__dict__["_message_id"] = message_id


def copy_records(content: RecordDict) -> RecordDict:
    """Return a content of copies of the same records, without the checks of each that their way in would repeat."""
    copied = content.copy()
    records: dict[str, Any] = copied.__dict__["_data"]
    for name, record in records.items():
        records[name] = record.copy()
    return copied


def message_with(body: RecordDict | Error, metadata: Metadata) -> Message:
    """Return a message of existing metadata, as Flower makes one from its protocol buffer."""
    kind: Any = Message  # its overloads leave this way out
    made: Message = kind(body, metadata=metadata)
    return made


def error_reply(run_id: int, node: int, message_id: str, error: Error) -> Message:
    """Return an error in place of a node's reply to a message of that id, as Flower's server makes one."""
    return message_with(error, Metadata(run_id, "", node, 0, message_id, "", time.time(), 0.0, SYSTEM_MESSAGE_TYPE))


def set_task_identity(run_id: int, node_id: int, task_id: int = 1) -> None:
    """Set the process-wide identity for good, in a process that has no other."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id


def empty_run(run_id: int) -> Run:
    """Return a run record with nothing but its id."""
    return Run.create_empty(run_id=run_id)


# --- the rounds of servers: flwr/serverapp/strategy/strategy.py, flwr/server/server.py ---


class ServerWatch(Protocol):
    """An object that is told what a server does beside its messages."""

    def on_start(self, strategy: str, rounds: int) -> None:
        """React to a strategy that begins with so many rounds."""
        ...

    def on_evaluate(self, number: int, metrics: Mapping[str, Any]) -> None:
        """React to the server's own test of the global model in a round."""
        ...


@contextmanager
def watched_servers(watch: ServerWatch) -> Iterator[None]:
    """Report to ``watch`` the strategies that start, in either API, and what they find when they test their model.

    Strategies of an app that have a ``start`` of their own are watched if their classes exist by now.
    """
    starts = {kind: kind.__dict__["start"] for kind in _subclasses(Strategy) if "start" in kind.__dict__}
    fit = Server.fit
    for kind, start in starts.items():
        kind.start = _watched_start(start, watch)
    Server.fit = _watched_fit(fit, watch)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Server.fit = fit  # type: ignore[method-assign]
        for kind, start in starts.items():
            kind.start = start


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _subclasses(child))]


class _WatchedTest:
    def __init__(self, evaluate: Callable[[int, Any], Any], watch: ServerWatch) -> None:
        self.evaluate, self.watch = evaluate, watch

    def __call__(self, number: int, arrays: Any) -> Any:
        found = self.evaluate(number, arrays)
        self.watch.on_evaluate(number, found or {})
        return found


def _watched_start(start: Any, watch: ServerWatch) -> Any:
    signature = inspect.signature(start)

    @functools.wraps(start)
    def watched(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        evaluate = given.get("evaluate_fn")
        watch.on_start(type(args[0]).__name__, int(given.get("num_rounds") or 0))

        if evaluate is not None and not isinstance(evaluate, _WatchedTest):  # else by a start that calls its parent's
            given["evaluate_fn"] = _WatchedTest(evaluate, watch)
        return start(*bound.args, **bound.kwargs)

    return watched


def _watched_fit(fit: Any, watch: ServerWatch) -> Any:
    @functools.wraps(fit)
    def watched(server: Server, num_rounds: int, timeout: float | None) -> Any:
        strategy, evaluate = server.strategy, server.strategy.evaluate
        watch.on_start(type(strategy).__name__, num_rounds)

        def tested(server_round: int, parameters: Any) -> Any:
            found = evaluate(server_round, parameters)
            if found is not None:
                watch.on_evaluate(server_round, {"loss": found[0], **found[1]})
            return found

        strategy.evaluate = tested  # type: ignore[method-assign]
        try:
            return fit(server, num_rounds, timeout)
        finally:
            strategy.evaluate = evaluate  # type: ignore[method-assign]

    return watched


@contextmanager
def clients_in_order() -> Iterator[None]:
    """Let Flower's older server call its clients one after another in the order of nodes, in its own thread.

    It would call them from a pool of threads, and aggregate their results in the order of a set.
    """
    before = server_module.fit_clients, server_module.evaluate_clients
    fit, evaluate = server_module.fit_client, server_module.evaluate_client
    server_module.fit_clients = _in_order(fit, server_module._handle_finished_future_after_fit)
    server_module.evaluate_clients = _in_order(evaluate, server_module._handle_finished_future_after_evaluate)
    try:
        yield
    finally:
        server_module.fit_clients, server_module.evaluate_clients = before


def _in_order(call: Any, sort: Any) -> Any:
    def clients(client_instructions: Any, max_workers: int | None, timeout: float | None, group_id: int) -> Any:
        results: list[Any] = []
        failures: list[Any] = []
        for proxy, instructions in sorted(client_instructions, key=lambda one: one[0].node_id):
            future = Future[Any]()
            try:
                future.set_result(call(proxy, instructions, timeout, group_id))
            except FedlabError:  # the end of the run
                raise
            except Exception as error:
                future.set_exception(error)
            sort(future, results, failures)
        return results, failures

    return clients


# --- apps by reference: flwr/supercore/object_ref.py ---


def load_app(reference: str) -> Any:
    """Return the app at ``module:attribute``; Exception when there is none."""
    return object_ref.load_app(reference, Exception)


def app_error(reference: str) -> str:
    """Return why the app at ``module:attribute`` cannot be imported; empty when it can."""
    try:
        valid, reason = object_ref.validate(reference, check_module=True)
    except ImportError as error:  # the package above the module
        valid, reason = False, str(error)
    return "" if valid else ((reason or "").splitlines() or ["unknown reason"])[0]


# --- a SuperLink's Control API: flwr/supercore/control, flwr/cli/run/run.py, flwr/cli/build.py ---


class ControlError(Exception):
    """A request to a SuperLink's Control API that failed."""


@dataclass(frozen=True)
class Simulation:
    """Resources of Flower's simulation.

    ``total_cpus`` sizes the private Ray that Flower starts; None joins the cluster of the environment.
    """

    num_supernodes: int
    client_cpus: int
    client_gpus: float
    total_cpus: int | None = None

    def to_proto(self) -> SimulationConfig:
        """Return the same as Flower's protocol buffer."""
        config = SimulationConfig(client_resources_num_cpus=self.client_cpus)
        if self.total_cpus is not None:
            config.init_args_num_cpus = self.total_cpus
        config.num_supernodes, config.client_resources_num_gpus = self.num_supernodes, self.client_gpus
        return config


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

    def start_run(
        self, server_app: str, client_app: str, config: Mapping[str, Any], simulation: Simulation | None = None
    ) -> int:
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
        federation = simulation.to_proto() if simulation else None
        with _as_control_error():
            reply = self._api.StartRun(StartRunRequest(fab=fab, override_federation_config=federation))
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


# --- commands that are started by their name on the PATH, and their entry points: flwr/supercore/constant.py ---

SUPEREXEC = {"flower-superexec": "flwr.supercore.cli:flower_superexec"}  # by SuperLink and SuperNode
SERVER_APP = {"flwr-serverapp": "flwr.superlink.cli:flwr_serverapp"}  # by the SuperExec of the SuperLink
CLIENT_APP = {"flwr-clientapp": "flwr.supernode.cli:flwr_clientapp"}  # by that of a SuperNode

# --- a SuperLink: flwr/server/superlink/linkstate/in_memory_linkstate.py ---


def run_superlink() -> None:
    """Run Flower's SuperLink in this process; the replies of nodes that have left count, see :func:`keep_replies`."""
    from flwr.superlink import cli

    keep_replies()
    cli.flower_superlink()


def keep_replies() -> None:
    """Let the SuperLinks of this process deliver a reply that they hold although its node has left meanwhile.

    Flower looks first whether the node is connected, and if it is not, the reply is lost: that of a client which leaves
    after its last round, or whose network fails, before the server has asked for it.
    """
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.object_store import NoObjectInStoreError

    get_message_res = InMemoryLinkState.get_message_res

    def is_complete(state: InMemoryLinkState, reply_id: str) -> bool:
        try:
            tree = state.object_store.get_object_tree(reply_id)
        except NoObjectInStoreError:
            return False
        return all(state.object_store.get(part.object_id) for part in iterate_object_tree(tree))

    def get_replies(self: InMemoryLinkState, message_ids: set[str], run_id: int) -> list[Message]:
        with self.lock:
            replies, now = self.message_ins_id_to_message_res_id, time.time()
            left = {}  # node that has left a complete reply -> when it left
            for message_id in message_ids & replies.keys():
                node = self.nodes.get(self.message_ins_store[message_id].metadata.dst_node_id)
                if node and (node.online_until or 0.0) < now and is_complete(self, replies[message_id]):
                    left[node.node_id] = node.online_until
                    node.online_until = float("inf")
            try:
                return get_message_res(self, message_ids, run_id)
            finally:
                for node_id, online_until in left.items():
                    self.nodes[node_id].online_until = online_until

    InMemoryLinkState.get_message_res = get_replies  # type: ignore[method-assign]


def is_http_grid(grid: Grid) -> TypeGuard[HttpGrid]:
    """Return True for the grid of a ServerApp that is a process of its own, which asks a SuperLink for its messages."""
    module = sys.modules.get(
        "flwr.superlink.grid.http_grid"
    )  # whose import takes a second: who has one has imported it
    return module is not None and isinstance(grid, module.HttpGrid)


# --- SuperNodes: flwr/client/grpc_rere_client/connection.py, flwr/supernode/start_client_internal.py ---

DEACTIVATE_TIMEOUT = 10.0  # seconds for the server's answer
MAX_SLEEP = 0.3  # seconds


def deactivate_node(address: str, authority: Path, key: EllipticCurvePrivateKey, node_id: int) -> bool:
    """Deregister a dead SuperNode from its SuperLink, authenticated with its key.

    A SuperLink counts a SuperNode that was killed as connected until its heartbeats have been missing for a minute,
    rejects another with the same key, and waits for the replies of the dead one.

    Returns
    -------
    bool
        False when the server does not know such a node as connected, or does not answer.
    """
    import grpc
    from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.proto.fleet_pb2_grpc import FleetStub
    from flwr.supercore.grpc import create_channel
    from flwr.supercore.interceptors import RuntimeVersionClientInterceptor

    interceptors = [
        RuntimeVersionClientInterceptor(component_name="SuperNode"),
        NodeAuthClientInterceptor(key, key.public_key()),
    ]
    channel = create_channel(address, False, authority.read_bytes(), interceptors=interceptors)
    try:
        FleetStub(channel).DeactivateNode(DeactivateNodeRequest(node_id=node_id), timeout=DEACTIVATE_TIMEOUT)
    except grpc.RpcError:
        return False
    finally:
        channel.close()
    return True


class CappedSleepClock:
    """Stand-in for the module ``time`` that sleeps at most ``MAX_SLEEP`` seconds."""

    @staticmethod
    def sleep(seconds: float) -> None:
        """Sleep for ``seconds``, or ``MAX_SLEEP`` if that is shorter."""
        time.sleep(min(seconds, MAX_SLEEP))

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the module ``time``."""
        return getattr(time, name)


def run_supernode() -> None:
    """Run Flower's SuperNode in this process, asking for messages every ``MAX_SLEEP`` seconds.

    Flower asks every three seconds, twice a round; where rounds are short, that is most of the time. The pause is no
    setting of Flower's, so its module gets a :class:`CappedSleepClock`.
    """
    from flwr.supernode import cli, start_client_internal

    start_client_internal.__dict__["time"] = CappedSleepClock()
    cli.flower_supernode()
