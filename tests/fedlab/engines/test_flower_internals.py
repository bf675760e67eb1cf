"""Canaries: one test for each private part of Flower that fedlab uses; a new version that changes one fails here."""

from __future__ import annotations

import inspect
import io
import re
import sys
import time
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import flwr
import grpc
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, Status, SubStatus
from flwr.proto.control_pb2 import ListRunsResponse, RegisterNodeResponse, StartRunResponse, StreamLogsResponse
from flwr.proto.fleet_pb2 import DeactivateNodeResponse
from flwr.proto.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.constant import NOOP_FEDERATION_ID, TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from flwr.superlink.grid import http_grid
from flwr.superlink.grid.inmemory_grid import InMemoryGrid
from flwr.supernode import start_client_internal

from fedlab.deploy import client_log, provision
from fedlab.engines import flower_internals, processes
from fedlab.engines.flower_internals import Control, ControlError, Outcome, Simulation
from fedlab.engines.grpc import RejectionMonitor

SOURCES = {path: path.read_text(encoding="utf-8") for path in Path(flwr.__file__).parent.rglob("*.py")}


def identity():
    return TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id


# --- messages in one process ---


def test_a_message_needs_an_identity_which_is_restored_afterwards():
    before = identity()
    TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = None
    with pytest.raises(RuntimeError, match=r"TaskIdentity\.\w+ is not set"):
        Message(RecordDict(), dst_node_id=7, message_type="train")
    with pytest.raises(KeyError), flower_internals.task_identity(5, 1):  # noqa: PT012
        assert Message(RecordDict(), dst_node_id=7, message_type="train").metadata.run_id == 5
        raise KeyError
    assert identity() == (None, None, None)
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def test_a_message_takes_an_id():
    with flower_internals.task_identity(5, 1):
        message = Message(RecordDict(), dst_node_id=7, message_type="train")
        flower_internals.set_message_id(message, "message-3")
        assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "message-3"


def test_copied_records_are_the_same_and_entries_of_the_copy_are_its_own():
    content = RecordDict({"one": ConfigRecord({"a": 1}), "two": ConfigRecord({"b": 2})})
    copied = flower_internals.copy_records(content)
    assert copied == content and type(copied) is RecordDict
    copied["one"]["a"] = 3
    del copied["two"]
    assert content == RecordDict({"one": ConfigRecord({"a": 1}), "two": ConfigRecord({"b": 2})})
    with pytest.raises(TypeError, match="Expected"):
        copied["three"] = 3  # its checks are still there


def test_an_empty_run_has_its_id():
    assert flower_internals.empty_run(5).run_id == 5


# --- the simulation on a Ray cluster ---


def test_the_simulation_starts_its_server_and_its_backend_by_these_names():
    """Ray itself is not imported: it would stay in this process."""
    loop = import_module("flwr.simulation.run_simulation")
    assert list(inspect.signature(loop._main_loop).parameters)[:3] == [
        "num_supernodes",
        "backend_name",
        "backend_config_stream",
    ]
    called = re.search(r"run_serverapp_th\((.*?)\)", inspect.getsource(loop._main_loop), re.DOTALL)
    assert called and "f_stop=f_stop" in called[1]
    sources = {path.name: text for path, text in SOURCES.items() if path.parent.name in ("vce", "backend")}
    assert "from .backend.raybackend import RayBackend" in sources["vce_api.py"]
    used = {"build", "num_workers", "process_message", "terminate", "is_worker_idle"}
    assert used <= set(re.findall(r"def (\w+)", sources["raybackend.py"]))
    assert "backend.num_workers" in sources["vce_api.py"]


# --- the rounds of servers ---


def test_older_servers_call_clients_through_functions_of_a_module_with_these_names():
    text = SOURCES[Path(flwr.__file__).parent / "server" / "server.py"]
    for name in ("fit", "evaluate"):
        assert f"= {name}_clients(" in text and f"def {name}_client(" in text
        assert f"def _handle_finished_future_after_{name}(" in text
    assert "self.strategy.evaluate(current_round, parameters=self.parameters)" in text


def test_strategies_start_with_rounds_and_a_test_of_their_model():
    parameters = inspect.signature(Strategy.start).parameters
    assert {"grid", "initial_arrays", "num_rounds", "evaluate_fn"} <= parameters.keys()


def test_a_strategy_is_watched_once_though_its_start_calls_its_parents():
    seen = []

    class Watch:
        def on_start(self, strategy, rounds):
            seen.append((strategy, rounds))

        def on_evaluate(self, number, metrics):
            seen.append((number, dict(metrics)))

    class Mine(FedAvg):
        def start(self, grid, initial_arrays, num_rounds=3, **options):
            return super().start(grid, initial_arrays, num_rounds=num_rounds, **options)

    before = Strategy.start, Mine.__dict__["start"]
    with flower_internals.watched_servers(Watch()):
        Mine().start(None, ArrayRecord(), num_rounds=0, evaluate_fn=lambda number, arrays: {"accuracy": 1.0})
    assert seen == [("Mine", 0), ("Mine", 0), (0, {"accuracy": 1.0})]
    assert (Strategy.start, Mine.__dict__["start"]) == before


# --- apps by reference ---


def test_apps_are_loaded_by_reference_and_missing_ones_give_a_reason():
    from fedlab.client.app import app

    assert flower_internals.load_app("fedlab.client.app:app") is app
    assert flower_internals.app_error("fedlab.client.app:app") == ""
    for missing in ("fedlab.client.app:nothing", "fedlab.nothing:app", "nothing.at.all:app"):
        assert flower_internals.app_error(missing)


# --- the Control API ---


class Answers:
    """Stands for Flower's Control API: records requests and gives one reply, or fails."""

    def __init__(self, reply):
        self.reply, self.requests = reply, []

    def __getattr__(self, method):
        def call(request):
            self.requests.append((method, request))
            if isinstance(self.reply, Exception):
                raise self.reply
            return self.reply

        return call


@pytest.fixture
def control():
    """A control client whose requests are answered by a reply of the test's."""

    def answering(reply):
        client = Control("127.0.0.1:1", None)
        client._api = Answers(reply)
        return client, client._api.requests

    return answering


def test_flowers_client_has_these_methods_and_the_http_client_that_is_replaced():
    api = Control("127.0.0.1:1", None)._api
    assert all(callable(getattr(api, name)) for name in ("StartRun", "ListRuns", "StreamLogs", "RegisterNode"))
    assert "self._client" in inspect.getsource(sys.modules[type(api).__mro__[1].__module__])
    assert isinstance(api._client, httpx.Client) and not api._client.trust_env


def test_a_server_that_does_not_answer_is_an_error():
    with pytest.raises(ControlError):
        Control(f"127.0.0.1:{processes.free_ports(1)[0]}", None).outcome(3)


def test_a_run_is_started_with_apps_config_and_resources(control):
    client, requests = control(StartRunResponse(run_id=3))
    assert client.start_run("a:app", "b:app", {"x.y": 1, "z": "q"}, Simulation(4, 1, 0.5, total_cpus=2)) == 3
    ((method, request),) = requests
    resources = request.override_federation_config
    assert method == "StartRun"
    assert (resources.num_supernodes, resources.client_resources_num_cpus, resources.init_args_num_cpus) == (4, 1, 2)
    assert resources.client_resources_num_gpus == 0.5
    project = bundled(request.fab.content)
    assert project["tool"]["flwr"]["app"]["components"] == {"serverapp": "a:app", "clientapp": "b:app"}
    assert project["tool"]["flwr"]["app"]["config"] == {"x.y": 1, "z": "q"}
    with pytest.raises(ControlError, match="no id"):
        control(StartRunResponse())[0].start_run("a:app", "b:app", {})


def bundled(content):
    """The pyproject.toml of a bundle."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return tomllib.loads(archive.read("pyproject.toml").decode())


@pytest.mark.parametrize(
    ("status", "sub_status", "expected"),
    [
        (Status.RUNNING, "", None),
        (Status.FINISHED, SubStatus.COMPLETED, Outcome(True, SubStatus.COMPLETED, "why")),
        (Status.FINISHED, SubStatus.FAILED, Outcome(False, SubStatus.FAILED, "why")),
    ],
)
def test_an_outcome(control, status, sub_status, expected):
    reply = ListRunsResponse()
    run = reply.run_dict[3].status
    run.status, run.sub_status, run.details = status, sub_status, "why"
    assert control(reply)[0].outcome(3) == expected


def test_a_node_is_registered_with_its_name_and_key(control):
    client, requests = control(RegisterNodeResponse(node_id=77))
    assert client.register_node("usps", b"key") == 77
    assert (requests[0][1].name, requests[0][1].public_key) == ("usps", b"key")


def test_logs_are_streamed_and_a_broken_stream_is_an_error(control):
    client, _ = control([StreamLogsResponse(log_output="a"), StreamLogsResponse(log_output="b")])
    assert list(client.stream_logs(3)) == ["a", "b"]
    with pytest.raises(ControlError):
        list(control(httpx.ReadError("gone"))[0].stream_logs(3))


# --- SuperNodes ---


def test_a_node_is_deactivated_with_its_key(tmp_path):
    seen = []

    class Fleet(FleetServicer):
        def DeactivateNode(self, request, context):
            seen.append((request.node_id, {key for key, _ in context.invocation_metadata()}))
            return DeactivateNodeResponse()

    provision.create_credentials(tmp_path)
    pair = [(tmp_path / name).read_bytes() for name in ("server.key", "server.crt")]
    server = grpc.server(ThreadPoolExecutor(1))
    add_FleetServicer_to_server(Fleet(), server)
    address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', grpc.ssl_server_credentials([tuple(pair)]))}"
    key = ec.generate_private_key(ec.SECP256R1())
    server.start()
    try:
        assert flower_internals.deactivate_node(address, tmp_path / "ca.crt", key, 17)
    finally:
        server.stop(None).wait()
    ((node, metadata),) = seen
    assert node == 17
    assert any("signature" in name for name in metadata) and any("public-key" in name for name in metadata)
    assert not flower_internals.deactivate_node(address, tmp_path / "ca.crt", key, 17)  # nobody answers now


@pytest.fixture
def link_state(monkeypatch):
    """A SuperLink's state with one run and one connected node, which was sent a message; reply() stores its answer."""
    monkeypatch.setattr(InMemoryLinkState, "get_message_res", InMemoryLinkState.get_message_res)  # restored at the end
    flower_internals.keep_replies()
    state = InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())
    node = state.create_node("owner", "owner", b"key", 30)
    state.activate_node(node, 30)
    run = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)

    def send():
        with flower_internals.task_identity(run, SUPERLINK_NODE_ID):
            message = Message(RecordDict(), dst_node_id=node, message_type="train")
            flower_internals.set_message_id(message, message.object_id)
        assert state.store_message_ins(message)
        return message

    def reply(message, *, complete):
        with flower_internals.task_identity(run, node):
            answer = Message(RecordDict({"note": ConfigRecord({"round": 1})}), reply_to=message)
            flower_internals.set_message_id(answer, answer.object_id)
        assert state.store_message_res(answer)
        objects = get_all_nested_objects(answer)
        state.object_store.preregister(run, get_object_tree(answer))
        for object_id, part in list(objects.items())[: None if complete else 1]:
            state.object_store.put(object_id, part.deflate())

    return SimpleNamespace(
        send=send,
        reply=reply,
        leave=lambda: state.deactivate_node(node),
        pull=lambda message: state.get_message_res({message.metadata.message_id}, run),
        nodes=lambda: state.get_nodes(run),
    )


def test_a_reply_counts_although_its_node_has_left(link_state):
    message = link_state.send()
    link_state.reply(message, complete=True)
    link_state.leave()
    time.sleep(0.001)
    (reply,) = link_state.pull(message)
    assert reply.content["note"]["round"] == 1
    assert link_state.nodes() == set()


@pytest.mark.parametrize("part", ["nothing", "half"])
def test_a_node_that_left_before_its_reply_was_there_is_gone(link_state, part):
    message = link_state.send()
    if part == "half":
        link_state.reply(message, complete=False)
    link_state.leave()
    time.sleep(0.001)
    (reply,) = link_state.pull(message)
    assert reply.error.code == ErrorCode.NODE_UNAVAILABLE


def test_flower_pauses_with_the_clock_that_is_replaced():
    assert "time.sleep(3)" in inspect.getsource(start_client_internal.start_client_internal)
    assert start_client_internal.__dict__["time"] is time


def test_the_clock_never_sleeps_long_and_tells_the_time(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    clock = flower_internals.CappedSleepClock()
    clock.sleep(3)
    clock.sleep(0.1)
    assert slept == [flower_internals.MAX_SLEEP, 0.1]
    assert clock.monotonic is time.monotonic


def test_apps_are_started_by_the_names_that_the_fork_servers_take():
    assert TASK_TYPE_TO_COMMAND[TaskType.CLIENT_APP] in flower_internals.CLIENT_APP
    assert TASK_TYPE_TO_COMMAND[TaskType.SERVER_APP] in flower_internals.SERVER_APP
    for module in (start_client_internal, import_module("flwr.superlink.cli.flower_superlink")):
        assert 'command = ["flower-superexec"]' in inspect.getsource(module)
    for commands in (flower_internals.SUPEREXEC, flower_internals.CLIENT_APP, flower_internals.SERVER_APP):
        for name, entry in commands.items():
            (script,) = entry_points(group="console_scripts", name=name)
            module, _, function = entry.partition(":")
            assert getattr(import_module(module), function) is script.load()


def test_the_grid_of_a_process_of_its_own_is_told_from_others():
    assert flower_internals.is_http_grid(object.__new__(http_grid.HttpGrid))
    assert not flower_internals.is_http_grid(object.__new__(InMemoryGrid))


# --- what Flower prints and reads ---


@pytest.mark.parametrize(
    "text",
    [
        client_log.ACCEPTED,
        client_log.CONNECTION_LOST,
        client_log.CONNECTION_BACK,
        *client_log.NOT_ACCEPTED,
        client_log.STOPPED,
        client_log.RECEIVING,
        *client_log.ANSWERED,
        "Attempted to register SuperNode with public key: ",
        "No SuperNode found",
        "is already in use",
    ],
)
def test_flower_logs_this_line(text):
    assert [path for path, source in SOURCES.items() if text in source]


def test_a_rejection_is_logged_as_it_is_read():
    (source,) = [source for path, source in SOURCES.items() if path.match("supercore/error/grpc.py")]
    assert 'msg = f"[{rpc_name}][ApiError:{err.code}] {err.message}"' in source
    line = "[/flwr.proto.Fleet/ActivateNode][ApiError:2004] Attempted to register SuperNode with public key: b'k', why"
    assert RejectionMonitor.REGISTRATION.search(line)


@pytest.mark.parametrize(
    "name",
    sorted(re.findall(r'"(FLWR_\w+)"', inspect.getsource(processes.environment))),
)
def test_flower_reads_this_variable(name):
    assert [path for path, source in SOURCES.items() if name in source]
