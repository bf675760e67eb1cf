"""Trees of objects that grow, calls that are too large, bundles with code: as Flower's own parts meet them."""

from __future__ import annotations

import inspect
import io
import zipfile
from importlib import import_module

import numpy as np
import pytest
import tomli_w
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supernode.runtime import run_clientapp

from fedlab.engines import flower_limits as limits
from fedlab.engines.flower_control import Control
from fedlab.engines.flower_internals import task_identity
from fedlab.engines.flower_limits import ForeignBundle
from fedlab.engines.programs import CLIENT_MODULES

RUN = 1
flower_superlink = import_module("flwr.superlink.cli.flower_superlink")  # the package has a function of this name
APP = "fedlab.client.app:app"


@pytest.fixture
def store(monkeypatch):
    """A store with limits."""
    monkeypatch.setattr(InMemoryObjectStore, "preregister", InMemoryObjectStore.preregister)  # restored at the end
    limits.limit_trees()
    return InMemoryObjectStore()


def tree(name, *children):
    return ObjectTree(object_id=get_object_id(name.encode()), children=children)


def test_honest_messages_are_taken_also_with_an_array_several_times(store):
    zeros = Array(np.zeros(3, np.float32))
    content = RecordDict({"arrays": ArrayRecord({"w": zeros, "b": zeros}), "config": ConfigRecord({"round": 1})})
    with task_identity(RUN, 1):
        message = Message(content, dst_node_id=7, message_type="train")
    store.preregister(RUN, get_object_tree(message))
    assert len(store) == 6  # the message, its content, two records, one array and its piece


def test_a_tree_that_doubles_at_each_level_is_refused_and_leaves_nothing(store):
    node = tree("0")
    for level in range(1, 8):
        node = tree(str(level), node, node)
    with pytest.raises(ValueError, match="deep"):
        store.preregister(RUN, node)
    assert len(store) == 0


def test_a_tree_that_grows_over_several_messages_is_refused_too(store):
    store.preregister(RUN, tree("a", tree("b", tree("c", tree("d")))))
    before = len(store)
    with pytest.raises(ValueError, match="deep"):
        store.preregister(RUN, tree("x", tree("y", tree("z", tree("a")))))  # the store knows what is below a
    assert len(store) == before


def test_a_tree_that_is_flat_as_it_is_sent_and_not_as_it_is_stored_is_refused(store):
    levels = [tree("0"), *(tree(str(level), *[tree(str(level - 1))] * 2) for level in range(1, 25))]
    with pytest.raises(ValueError, match="deep"):
        store.preregister(RUN, tree("message", tree("record", *levels)))
    assert len(store) == 0


def test_a_tree_of_too_many_objects_is_refused(store, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TREE_OBJECTS", 50)
    wide = tree("record", *[tree("array")] * 49)
    with pytest.raises(ValueError, match="more than 50 objects"):
        store.preregister(RUN, tree("message", wide))
    store.preregister(RUN, wide)


def test_a_superlink_takes_the_largest_size_of_a_call_from_this_name(monkeypatch):
    monkeypatch.setattr(flower_superlink, "GRPC_MAX_MESSAGE_LENGTH", flower_superlink.GRPC_MAX_MESSAGE_LENGTH)
    limits.limit_calls()
    assert flower_superlink.GRPC_MAX_MESSAGE_LENGTH == limits.MAX_CALL_BYTES
    source = inspect.getsource(flower_superlink._run_fleet_api_grpc_rere)
    assert "max_message_length=GRPC_MAX_MESSAGE_LENGTH" in source


def bundle(files=(), client=APP):
    components = {"serverapp": "fedlab.server.app:app", "clientapp": client}
    project = {
        "project": {"name": "run", "version": "0.0.0"},
        "tool": {"flwr": {"app": {"publisher": "us", "components": components}}},
    }
    return build_fab_from_files({"pyproject.toml": tomli_w.dumps(project).encode(), **dict(files)})[0]


def plain_zip(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_the_bundle_of_a_run_is_accepted():
    sent = []

    class Api:
        def StartRun(self, request):
            sent.append(request.fab.content)
            return type("Reply", (), {"run_id": 3, "HasField": lambda self, name: True})()

    control = object.__new__(Control)
    control._api = Api()
    control.start_run("fedlab.server.app:app", APP, {"preset": "x"})
    limits.check_bundle(sent[0], CLIENT_MODULES)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (bundle({"fedlab/client/app.py": b"app = print"}), "code of its own .'fedlab/client/app.py'"),
        (bundle(client="os:system"), "asked for the app 'os:system'"),
        (b"no archive", "cannot be read: BadZipFile"),
        (plain_zip(other="1"), "cannot be read: KeyError"),
    ],
)
def test_a_client_app_that_is_not_the_installed_one_is_not_run(content, sentence, monkeypatch, capfd):
    ran = []
    monkeypatch.setattr(run_clientapp, "install_from_fab", lambda *arguments, **options: ran.append(arguments))
    limits.refuse_foreign_bundles(CLIENT_MODULES, "refused: ")
    with pytest.raises(ForeignBundle, match=sentence):
        run_clientapp.install_from_fab(content, skip_prompt=True)
    assert not ran and capfd.readouterr().err.startswith("refused: the server ")
    run_clientapp.install_from_fab(bundle(), skip_prompt=True)
    assert ran == [(bundle(),)]


def test_a_client_app_s_process_installs_its_bundle_by_this_name():
    assert "install_from_fab(fab.content" in inspect.getsource(run_clientapp.run_clientapp)
