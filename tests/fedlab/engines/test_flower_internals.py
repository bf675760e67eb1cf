"""Canaries: one test for each private part of Flower that fedlab uses; a new version that changes one fails here."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import flwr
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from fedlab.deploy import client_log
from fedlab.engines import flower_internals, processes
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


# --- apps by reference ---


def test_apps_are_loaded_by_reference_and_missing_ones_give_a_reason():
    from fedlab.client.app import app

    assert flower_internals.load_app("fedlab.client.app:app") is app
    assert flower_internals.app_error("fedlab.client.app:app") == ""
    for missing in ("fedlab.client.app:nothing", "fedlab.nothing:app", "nothing.at.all:app"):
        assert flower_internals.app_error(missing)


# --- grids ---


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
