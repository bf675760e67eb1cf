"""Calls of a SuperNode whose answers were lost: the same state of Flower's gives the same answers again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager

from fedlab.engines import flower_internals, flower_repeats

PATCHED = ("get_message_ins", "store_message_and_object_tree", "store_object")


@pytest.fixture
def link(monkeypatch):
    """A SuperLink's state with a run and two nodes; each function does what a call of one side does."""
    for name in PATCHED:
        monkeypatch.setattr(InMemoryLinkState, name, getattr(InMemoryLinkState, name))  # restored at the end
    flower_repeats.answer_repeated_calls()
    state = InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())
    nodes = [state.create_node("owner", "owner", key, 30) for key in (b"key", b"other")]
    for node in nodes:
        state.activate_node(node, 30)
    run = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)

    def send(node=nodes[0]):
        with flower_internals.task_identity(run, SUPERLINK_NODE_ID):
            message = Message(RecordDict({"of": ConfigRecord({"round": 1})}), dst_node_id=node, message_type="train")
            flower_internals.set_message_id(message, message.object_id)
        assert state.store_message_ins(message)
        state.object_store.preregister(run, get_object_tree(message))
        return message.metadata.message_id

    def answer(message):
        with flower_internals.task_identity(run, nodes[0]):
            reply = Message(RecordDict({"note": ConfigRecord({"round": 1})}), reply_to=message)
            flower_internals.set_message_id(reply, reply.object_id)
        return reply

    def push(reply):
        session = state.start_session(run)
        stored, missing = state.store_message_and_object_tree(reply, get_object_tree(reply), session)
        parts = {one: part.deflate() for one, part in get_all_nested_objects(reply).items() if one in missing}
        return SimpleNamespace(
            stored=stored,
            missing=set(missing),
            put=lambda one: state.store_object(run, session, one, parts[one]),
            put_content=lambda one, content: state.store_object(run, session, one, content),
        )

    return SimpleNamespace(
        state=state,
        nodes=nodes,
        send=send,
        pull=lambda node=nodes[0]: [one.metadata.message_id for one in state.get_message_ins(node, 1)],
        message=lambda one: state.message_ins_store[one],
        confirm=state.object_store.delete,
        answer=answer,
        push=push,
        take_head=lambda one: state.delete_messages({one}),  # as the Runtime API does with what it gives the ServerApp
        is_there=lambda reply: all(state.object_store.get(one) for one in get_all_nested_objects(reply)),
    )


def test_a_message_that_did_not_arrive_is_given_again_once_and_to_no_other(link):
    sent = link.send()
    assert link.pull() == [sent]
    assert link.pull(link.nodes[1]) == []
    assert link.pull() == [sent]
    assert link.pull() == []
    later = link.send()
    assert link.pull() == [later]
    link.confirm(later)
    assert link.pull() == []


def test_a_reply_whose_head_was_taken_is_completed_by_a_node_that_sends_it_again(link):
    sent = link.send()
    reply = link.answer(link.message(*link.pull()))
    first = link.push(reply)
    assert first.stored and len(first.missing) > 1
    link.take_head(sent)
    second = link.push(reply)
    assert second.stored and second.missing == first.missing
    assert all(second.put(one) for one in second.missing)
    assert link.is_there(reply)
    third = link.push(reply)  # all is there: nothing is wanted
    assert (third.stored, third.missing) == (False, set())


def test_a_reply_to_nothing_is_refused_as_before(link):
    sent = link.send()
    reply = link.answer(link.message(*link.pull()))
    link.take_head(sent)
    pushed = link.push(reply)
    assert (pushed.stored, pushed.missing) == (False, set())


def test_an_object_that_comes_again_is_no_error_and_others_are(link):
    link.send()
    pushed = link.push(link.answer(link.message(*link.pull())))
    one, other = sorted(pushed.missing)[:2]
    assert pushed.put(one) and pushed.put(one)
    assert not pushed.put_content(one, b"another")
    assert not pushed.put_content(other, b"another")
    assert not pushed.put_content(other, b"")
    assert pushed.put(other)
