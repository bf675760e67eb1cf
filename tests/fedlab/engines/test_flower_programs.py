"""Canaries: Flower's SuperLink and SuperNode as processes, and what they start."""

from __future__ import annotations

import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import entry_points
from types import SimpleNamespace

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.fleet_pb2 import DeactivateNodeResponse, PullMessagesRequest
from flwr.proto.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.fleet.message_handler.message_handler import pull_messages
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from flwr.supernode import start_client_internal

from fedlab.deploy import provision
from fedlab.engines import flower_internals, flower_programs


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
        assert flower_programs.deactivate_node(address, tmp_path / "ca.crt", key, 17)
    finally:
        server.stop(None).wait()
    ((node, metadata),) = seen
    assert node == 17
    assert any("signature" in name for name in metadata) and any("public-key" in name for name in metadata)
    assert not flower_programs.deactivate_node(address, tmp_path / "ca.crt", key, 17)  # nobody answers now


@pytest.fixture
def link_state(monkeypatch):
    """A SuperLink's state with one run and one connected node, which was sent a message; reply() stores its answer."""
    monkeypatch.setattr(InMemoryLinkState, "get_message_res", InMemoryLinkState.get_message_res)  # restored at the end
    monkeypatch.setattr(InMemoryLinkState, "delete_messages", InMemoryLinkState.delete_messages)
    flower_programs.keep_replies()
    flower_programs.delete_with_objects()
    state = InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())
    node = state.create_node("owner", "owner", b"key", 30)
    state.activate_node(node, 30)
    run = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)

    def send(**of):
        with flower_internals.task_identity(run, SUPERLINK_NODE_ID):
            message = Message(RecordDict({"of": ConfigRecord(of)}), dst_node_id=node, message_type="train")
            flower_internals.set_message_id(message, message.object_id)
        assert state.store_message_ins(message)
        state.object_store.preregister(run, get_object_tree(message))
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

    def taken():
        """Ids of the messages that the node is given when it asks, as it does again and again."""
        request = PullMessagesRequest(node=Node(node_id=node))
        answer = pull_messages(request, state, state.object_store)
        return [message.metadata.message_id for message in answer.messages_list]

    return SimpleNamespace(
        send=send,
        reply=reply,
        leave=lambda: state.deactivate_node(node),
        pull=lambda message: state.get_message_res({message.metadata.message_id}, run),
        nodes=lambda: state.get_nodes(run),
        delete=lambda message: state.delete_messages({message.metadata.message_id}),
        objects=lambda: set(state.object_store.store),
        forget=lambda message: state.object_store.delete(message.metadata.message_id),  # ConfirmMessageReceived
        taken=taken,
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


def test_what_a_dead_node_never_took_is_deleted_with_its_message(link_state):
    before = link_state.objects()
    kept = link_state.send(round=1)
    after = link_state.objects()
    lost = link_state.send(round=2)
    assert before < after < link_state.objects()
    link_state.leave()
    time.sleep(0.001)
    (gone,) = link_state.pull(lost)
    link_state.delete(lost)  # as Flower does then
    answer = {gone.metadata.message_id}  # which the ServerApp takes
    assert link_state.objects() - answer == after
    link_state.delete(kept)
    link_state.delete(kept)  # its node took it, and its objects are gone
    assert link_state.objects() - answer == before


def test_a_node_is_not_sent_a_message_whose_objects_were_deleted_and_is_sent_the_next(link_state):
    before = link_state.objects()
    link_state.forget(link_state.send(round=1))
    kept = link_state.send(round=2)
    assert [link_state.taken(), link_state.taken()] == [[], [kept.metadata.message_id]]
    assert link_state.objects() - before == set(get_all_nested_objects(kept))


def test_a_node_that_takes_a_message_while_it_is_deleted_goes_on():
    received = inspect.getsource(start_client_internal._pull_and_store_message)
    assert "except Exception as err" in received and "Pulling message objects failed" in received


def test_flower_deletes_a_message_whose_node_is_gone_once_it_was_asked_for():
    handlers = import_module("flwr.superlink.servicer.runtime.runtime_handlers")
    assert "state.delete_messages(message_ins_ids=message_ins_ids_to_delete)" in inspect.getsource(handlers)


def test_flower_pauses_with_the_clock_that_is_replaced():
    assert "time.sleep(3)" in inspect.getsource(start_client_internal.start_client_internal)
    assert start_client_internal.__dict__["time"] is time


def test_the_clock_never_sleeps_long_and_tells_the_time(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    clock = flower_programs.CappedSleepClock()
    clock.sleep(3)
    clock.sleep(0.1)
    assert slept == [flower_programs.MAX_SLEEP, 0.1]
    assert clock.monotonic is time.monotonic


def test_apps_are_started_by_the_names_that_the_fork_servers_take():
    assert TASK_TYPE_TO_COMMAND[TaskType.CLIENT_APP] in flower_programs.CLIENT_APP
    assert TASK_TYPE_TO_COMMAND[TaskType.SERVER_APP] in flower_programs.SERVER_APP
    for module in (start_client_internal, import_module("flwr.superlink.cli.flower_superlink")):
        assert 'command = ["flower-superexec"]' in inspect.getsource(module)
    for commands in (flower_programs.SUPEREXEC, flower_programs.CLIENT_APP, flower_programs.SERVER_APP):
        for name, entry in commands.items():
            (script,) = entry_points(group="console_scripts", name=name)
            module, _, function = entry.partition(":")
            assert getattr(import_module(module), function) is script.load()
