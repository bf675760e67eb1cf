"""Replies that are read object by object, from Flower's own store: slow, endless, huge, false, and no replies."""

from __future__ import annotations

import json
import time
from copy import copy

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id

from fedlab.comm.grid import PartitionGrid
from fedlab.comm.roster import Roster
from fedlab.engines import superlink_grid
from fedlab.engines.flower_internals import task_identity
from fedlab.engines.superlink_grid import SPARE_OBJECTS, SuperLinkGrid, reading_step_by_step
from grids import to_all
from object_links import RUN_ID, ObjectLink

NODES = {77: 0, 5: 1, 901: 2}


@pytest.fixture(autouse=True)
def identity():
    with task_identity(RUN_ID, 1):
        yield


def reply_to(message, content=None, **arrays):
    """An honest client's reply, made as its node makes it."""
    content = content or RecordDict(
        {"arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()}), "config": ConfigRecord()}
    )
    with task_identity(RUN_ID, message.metadata.dst_node_id):
        return Message(content, reply_to=message)


def small(message):
    return reply_to(message, w=np.ones(3, np.float32))


class Federation:
    """Three clients of which 5 is what a test says, behind a partition grid over a store of objects."""

    def __init__(self, max_reply_mb=1.0, round_timeout=0.5):
        self.link, self.act = ObjectLink(NODES), lambda message: None
        self.grid = SuperLinkGrid(self.link.grid, max_reply_mb)
        self.seen = PartitionGrid(
            Roster(self.grid, {0: "a", 1: "b", 2: "c"}), min_clients=1, round_timeout=round_timeout
        )
        self.link.on_push = self.answer
        self.seen.wait_for_clients(1, 5.0)

    def answer(self, message):
        node = message.metadata.dst_node_id
        if message.metadata.message_type == "query":
            identity = ConfigRecord({"partition": NODES[node]})
            self.link.answer(reply_to(message, RecordDict({"identity": identity})))
        elif node == 5:
            self.act(message)
        else:
            self.link.answer(small(message))

    def round(self, act):
        """Partitions used, and the failures, of a round in which 5 does ``act(message)``."""
        self.act = act
        messages = to_all(self.seen.get_node_ids(), w=np_array())
        replies = self.seen.send_and_validate(messages, idle_timeout=60)
        return [self.seen.partition_of[reply.metadata.src_node_id] for reply in replies], self.seen.stats.failures

    def failure(self, act):
        used, (failure,) = self.round(act)
        assert used == [0, 2] and failure.partition == 1
        assert not self.grid._partial
        return failure


def np_array():
    return Array(np.zeros(3, np.float32))


def test_honest_replies_are_those_that_flower_s_grid_returns():
    federation = Federation()
    used, failures = federation.round(lambda message: federation.link.answer(small(message)))
    assert (used, failures) == ([0, 1, 2], [])
    assert len(federation.link.store) == 0  # Flower's server may delete what was read


def test_an_error_is_passed_on():
    def fail(message):
        with task_identity(RUN_ID, 5):
            federation.link.answer(Message(Error(2, "no such lesion"), reply_to=message))

    federation = Federation()
    failure = federation.failure(fail)
    assert (failure.kind, failure.reason) == ("failed", "no such lesion")


def test_a_reply_that_is_announced_and_never_sent_is_late_and_the_others_are_used():
    federation = Federation()
    failure = federation.failure(lambda message: federation.link.announce(reply := small(message), reply.metadata))
    assert (failure.kind, failure.reason) == ("late", "no reply within 0.5 s")
    assert len(federation.link.store) == 0
    assert federation.link.reads < 100  # it is asked for less and less often


def test_a_reply_whose_objects_come_slowly_is_late_and_one_that_comes_after_its_round_is_deleted():
    federation, contents, later = Federation(), {}, {}

    def begin(message):
        reply = reply_to(message, **{str(number): np.full(2, number) for number in range(40)})
        contents.update(federation.link.announce(reply, reply.metadata))

    read = federation.link.PullObject

    def trickle(request):
        if contents and federation.link.reads % 8 == 0:
            federation.link.put(dict([contents.popitem()]))
        return read(request)

    federation.link.PullObject = trickle
    assert federation.failure(begin).kind == "late"
    assert contents
    contents.clear()
    federation.seen.start_round(2, 1.0)
    assert federation.failure(lambda message: later.update(message=message)).kind == "late"
    federation.link.answer(small(later["message"]))
    assert len(federation.link.store) > 0
    federation.seen.start_round(3, 1.0)
    federation.round(lambda message: federation.link.answer(small(message)))
    assert len(federation.link.store) == 0


def test_a_message_that_its_node_has_not_taken_by_the_deadline_is_deleted():
    federation = Federation()
    failure = federation.failure(federation.link.keep)
    assert failure.kind == "late"
    assert len(federation.link.store) == 0


def test_a_reply_that_is_complete_at_the_deadline_is_taken():
    federation = Federation(round_timeout=1e-9)
    used, failures = federation.round(lambda message: federation.link.answer(small(message)))
    assert (used, failures) == ([0, 1, 2], [])


def test_a_reply_is_refused_at_its_first_bytes_over_the_limit():
    federation = Federation()
    array = np.random.default_rng(0).random(2_500_000)  # four pieces of 5 MB
    failure = federation.failure(lambda message: federation.link.answer(reply_to(message, w=array)))
    assert failure.kind == "refused" and "option comm.max_reply_mb allows 1 MB" in failure.reason
    assert federation.link.reads < 40


def repeated(array, times):
    """An array that names its one piece so many times."""

    class Repeated(Array):
        __qualname__ = "Array"

        def deflate(self):
            head, body = super().deflate().split(b"\x00", 1)
            described = {**json.loads(body), "arraychunk_ids": [0] * times}
            body = json.dumps(described).encode()
            return b" ".join([*head.split(b" ")[:2], str(len(body)).encode()]) + b"\x00" + body

    return Repeated(array)


def test_an_array_that_names_one_piece_many_times_is_refused_before_it_is_built():
    federation = Federation()
    content = RecordDict({"arrays": ArrayRecord()})
    content["arrays"]["w"] = repeated(np.zeros(100_000, np.float64), 1_500)
    failure = federation.failure(lambda message: federation.link.answer(reply_to(message, content)))
    assert failure.kind == "refused" and "it has 1200.2 MB" in failure.reason


def test_thousands_of_tiny_arrays_are_refused_by_their_number():
    federation = Federation()
    many = {str(number): np.full(1, number) for number in range(SPARE_OBJECTS)}
    failure = federation.failure(lambda message: federation.link.answer(reply_to(message, **many)))
    assert failure.kind == "refused" and "more than 5" in failure.reason and "objects" in failure.reason


def test_names_numbers_and_texts_have_a_limit_of_their_own(monkeypatch):
    monkeypatch.setattr(superlink_grid, "MAX_RECORDS_MB", 0.1)
    federation = Federation(max_reply_mb=1_000)
    content = RecordDict({"metrics": ConfigRecord({"text": "a" * 110_000})})
    failure = federation.failure(lambda message: federation.link.answer(reply_to(message, content)))
    assert failure.kind == "refused" and "0.1 MB of names, numbers and texts" in failure.reason


def test_a_record_in_place_of_a_message_is_refused():
    federation = Federation()

    def act(message):
        head = copy(small(message).metadata)
        federation.link.answer(ConfigRecord({"a": 1}), head)

    failure = federation.failure(act)
    assert failure.kind == "refused" and "it is a ConfigRecord and no message" in failure.reason


def test_bytes_that_are_no_message_are_refused():
    federation = Federation()

    def act(message):
        body = b"\xff\xff\xff"
        content = b"Message  " + str(len(body)).encode() + b"\x00" + body
        key = get_object_id(content)
        head = copy(small(message).metadata)
        head.__dict__["_message_id"] = key
        federation.link.store.preregister(RUN_ID, ObjectTree(object_id=key))
        federation.link.put({key: content})
        federation.link.replies[head.reply_to_message_id] = head
        federation.link.trees[head.reply_to_message_id] = ObjectTree(object_id=key)

    failure = federation.failure(act)
    assert failure.kind == "refused" and "its objects cannot be read" in failure.reason


@pytest.mark.parametrize("key", ["_reply_to_message_id", "_src_node_id"])
def test_a_message_with_another_head_than_was_announced_is_refused(key):
    federation = Federation()

    def act(message):
        reply = small(message)
        head = copy(reply.metadata)
        head.__dict__ = dict(reply.metadata.__dict__)
        reply.metadata.__dict__[key] = 77 if key == "_src_node_id" else "f" * 64
        federation.link.answer(reply, head)

    failure = federation.failure(act)
    assert failure.kind == "refused" and "names another message or another sender" in failure.reason


def test_a_tree_that_names_an_object_again_and_again_is_not_followed():
    federation = Federation()

    def act(message):
        reply = small(message)
        tree = ObjectTree(object_id=reply.object_id)
        wide = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id="1" * 64)] * 100_000)
        tree.children.extend([wide])
        federation.link.announce(reply, reply.metadata, lambda contents, _: (contents, tree))

    began = time.monotonic()
    failure = federation.failure(act)
    assert failure.kind == "refused" and "objects" in failure.reason
    assert time.monotonic() - began < 30


def test_only_the_grid_of_a_server_app_process_is_read_step_by_step():
    assert isinstance(reading_step_by_step(ObjectLink([]).grid, 1.0), SuperLinkGrid)
    assert reading_step_by_step("another", 1.0) == "another"
