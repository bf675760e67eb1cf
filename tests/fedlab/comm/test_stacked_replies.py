"""Replies that are rows of stacked contents: the messages, sizes and checks of replies made one by one."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto

from fedlab.comm.stacked_replies import (
    StackedContents,
    StackedReply,
    config_of,
    message_bytes,
    stacked_content,
)
from fedlab.comm.tensors import content_bytes, tensor_record
from fedlab.engines.flower_internals import set_message_id, task_identity
from fedlab.strategies import validation
from fedlab.strategies.aggregation import client_update
from fedlab.strategies.protocol import client_metrics
from fedlab.strategies.validation import InvalidUpdate
from fedlab.vectorized.stacked_states import StackedStates

STATES = {"w": torch.arange(12.0).reshape(3, 2, 2), "n": torch.tensor([1, 2, 3])}


@pytest.fixture(autouse=True)
def identity():
    with task_identity(1, 7):
        yield


def message(server_round=4):
    asked = Message(
        RecordDict({"config": ConfigRecord({"server-round": server_round})}),
        dst_node_id=11,
        message_type=MessageType.TRAIN,
        group_id="4",
    )
    set_message_id(asked, "message-3")
    return asked


def contents(losses=(0.5, 0.25, 1.0), examples=(50, 5000, 7), states=STATES, server_round=4):
    config = {"config": ConfigRecord({"server-round": server_round})}
    metrics = {"metrics": {"loss": losses, "num-examples": examples}}
    return StackedContents({"arrays": StackedStates(states)}, metrics, config)


def alone(row, losses=(0.5, 0.25, 1.0), examples=(50, 5000, 7), states=STATES, server_round=4):
    """The same content, made as a client that trains alone makes it."""
    metrics = MetricRecord({"loss": losses[row], "num-examples": examples[row]})
    arrays = tensor_record({name: stack[row] for name, stack in states.items()})
    return RecordDict(
        {"arrays": arrays, "metrics": metrics, "config": ConfigRecord({"server-round": server_round})},
    )


def test_its_metadata_are_those_of_flowers_own_reply():
    asked = message()
    asked.metadata.dst_task_id = 5
    ours, flowers = (
        dict(vars(one.metadata)) for one in (StackedReply(contents(), 1, asked), Message(alone(1), reply_to=asked))
    )
    assert ours.pop("_created_at") == pytest.approx(flowers.pop("_created_at"), abs=5)
    assert ours.pop("_ttl") == pytest.approx(flowers.pop("_ttl"), abs=5)
    assert ours == flowers


@pytest.mark.parametrize("row", range(3))
def test_its_content_is_that_of_a_reply_made_alone(row):
    reply, wanted = StackedReply(contents(), row, message()), alone(row)
    assert reply.has_content() and not reply.has_error() and stacked_content(reply) is not None
    assert list(reply.content) == list(wanted) and stacked_content(reply) is None
    assert dict(reply.content["metrics"]) == dict(wanted["metrics"])
    for name, tensor in reply.content["arrays"].to_torch_state_dict().items():
        assert torch.equal(tensor, STATES[name][row])
    received = message_from_proto(message_to_proto(StackedReply(contents(), row, message())))
    assert received.content.object_id == reply.content.object_id == wanted.object_id


def test_who_changes_a_content_changes_no_other():
    of = contents()
    one, other = (StackedReply(of, row, message()) for row in range(2))
    one.content["config"]["note"] = "mine"
    one.content["metrics"]["loss"] = math.inf
    assert "note" not in other.content["config"] and client_metrics(other)["loss"] == 0.25
    assert client_metrics(one)["loss"] == math.inf and config_of(one, "config")["note"] == "mine"
    replaced = copy.copy(StackedReply(of, 2, message()))
    replaced.content = RecordDict()
    assert len(replaced.content) == 0 and config_of(replaced, "config") is None


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda reply: pickle.loads(pickle.dumps(reply))])
def test_a_copy_is_a_message_of_its_own_without_the_other_rows(how, monkeypatch):
    reply = StackedReply(contents(), 1, message())
    monkeypatch.setattr(StackedContents, "__deepcopy__", None, raising=False)  # it would be called
    made = how(reply)
    assert type(made) is Message and stacked_content(made) is None
    assert made.content.object_id == reply.content.object_id
    assert vars(made.metadata) == vars(reply.metadata)


@pytest.mark.parametrize("examples", [(1, 63, 64), (127, 128, 2**13 - 1), (2**13, 2**31, 2**62), (-1, -64, -65)])
def test_its_size_is_that_of_its_content(examples):
    of = contents(examples=examples)
    replies = [StackedReply(of, row, message()) for row in range(3)]
    sizes = [message_bytes(reply) for reply in replies]
    assert all(stacked_content(reply) is not None for reply in replies)
    assert sizes == [content_bytes(alone(row, examples=examples)) for row in range(3)]
    assert sizes == [message_bytes(reply) for reply in replies if reply.content]


def test_an_update_has_the_numbers_of_the_row_and_its_tensors_on_demand():
    update = client_update(StackedReply(contents(), 1, message()))
    assert (update.examples, update.metrics) == (5000, {"loss": 0.25, "num-examples": 5000.0})
    assert list(update.arrays) == ["w", "n"] and len(update.arrays) == 2
    assert torch.equal(update.arrays["w"], STATES["w"][1]) and update.arrays["w"] is update.arrays["w"]


BAD = {
    "another round": {"server_round": 3},
    "a loss that is not finite": {"losses": (0.5, math.nan, 1.0)},
    "an infinite loss": {"losses": (0.5, -math.inf, 1.0)},
    "a huge loss": {"losses": (0.5, 1e13, 1.0)},
    "no examples": {"examples": (50, 0, 7)},
    "too many examples": {"examples": (50, 10**10, 7)},
    "examples that are no integer": {"examples": (50, 5.0, 7)},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_a_row_is_refused_as_a_reply_made_alone_is(changes):
    of, asked = contents(**changes), message()
    for row in range(3):
        errors = []
        for reply in (StackedReply(of, row, asked), Message(alone(row, **changes), reply_to=asked)):
            try:
                validation.validate_reply(asked, reply)
                errors.append("")
            except InvalidUpdate as error:
                errors.append(str(error))
        assert errors[0] == errors[1]
        assert bool(errors[0]) == (row == 1 or "server_round" in changes)


def test_rows_that_are_plain_are_accepted_without_a_content():
    of, asked = contents(), message()
    for row in range(3):
        reply = StackedReply(of, row, asked)
        validation.validate_reply(asked, reply)
        assert stacked_content(reply) is not None


LIKE = {"w": torch.ones(2, 2), "running_var": torch.ones(2)}
STACKS = {
    "fine": (LIKE, [True, True]),
    "one is not finite": ({**LIKE, "w": torch.tensor([[1.0, 1.0], [1.0, math.nan]])}, [True, False]),
    "one has a variance below 0": ({**LIKE, "running_var": torch.tensor([1.0, -1.0])}, [True, False]),
    "one is too large": ({**LIKE, "w": torch.full((2, 2), 1e9)}, [True, False]),
    "another shape": ({**LIKE, "w": torch.ones(4)}, [False, False]),
    "another type": ({**LIKE, "w": torch.ones(2, 2).double()}, [False, False]),
    "another name": ({"v": torch.ones(2, 2), "running_var": torch.ones(2)}, [False, False]),
}


@pytest.mark.parametrize(("second", "wanted"), STACKS.values(), ids=STACKS)
def test_states_are_accepted_where_one_alone_is(second, wanted):
    first = LIKE if wanted[0] else second
    states = StackedStates({name: torch.stack([first[name], second[name]]) for name in first})
    assert validation.valid_states(states, LIKE, 10.0, validation.norm(LIKE)) == wanted
    for row, fine in enumerate(wanted):
        content = RecordDict({"arrays": tensor_record(states[row])})
        if fine:
            validation.validate_arrays(content, "arrays", LIKE, 10.0)
        else:
            with pytest.raises(InvalidUpdate):
                validation.validate_arrays(content, "arrays", LIKE, 10.0)
