"""Messages made from others are those that Flower would make."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedlab.comm.messages import reply_metadata, to_node, with_content
from fedlab.engines.flower_internals import set_message_id, task_identity

TIMES = {"_created_at", "_ttl"}


@pytest.fixture(autouse=True)
def identity():
    with task_identity(3, 1):
        yield


def asked(node: int = 7) -> Message:
    return Message(RecordDict({"config": ConfigRecord({"a": 1})}), dst_node_id=node, message_type=MessageType.TRAIN)


def facts(message: Message) -> dict[str, object]:
    return {name: value for name, value in vars(message.metadata).items() if name not in TIMES}


def test_a_message_to_another_node_is_flowers_own():
    first = asked()
    other = to_node(first, 8)
    assert type(other) is Message and other.content is first.content
    assert facts(other) == facts(asked(8)) and vars(other).keys() == vars(asked(8)).keys()
    set_message_id(other, "eight")
    assert first.metadata.dst_node_id == 7 and not first.metadata.message_id


def test_another_content_leaves_the_message_as_it_was():
    first, content = asked(), RecordDict()
    other = with_content(first, content)
    assert other.content is content and "config" in first.content
    assert other.metadata is first.metadata


def test_a_reply_goes_back_to_where_the_message_came_from():
    message = asked()
    set_message_id(message, "one")
    message.metadata.dst_task_id = 5
    made, flowers = reply_metadata(message.metadata), Message(RecordDict(), reply_to=message).metadata
    assert {**vars(made), "_created_at": 0, "_ttl": 0} == {**vars(flowers), "_created_at": 0, "_ttl": 0}
    assert made.created_at + made.ttl == pytest.approx(message.metadata.created_at + message.metadata.ttl)
