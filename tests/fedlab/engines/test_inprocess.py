"""The network that is a function call: clients as isolated as on a real one, failures as replies, Flower's own loop."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedlab.errors import RunError
from grids import client_app, echo, to_all, within

W = torch.tensor([1.0, 2.0])


def exchange(train, partitions=3, rounds=1):
    """The replies of each round to one shared RecordDict, and that RecordDict afterwards."""

    def body(grid):
        messages = [to_all(grid.get_node_ids(), w=W.clone()) for _ in range(rounds)]
        replies = [grid.send_and_receive(batch) for batch in messages]
        return replies, messages[0][0].content

    return within(client_app(train), partitions, body)


# --- isolation ---


def test_a_client_that_changes_its_message_in_place_reaches_nobody_else():
    def vandal(message, context):
        reply = RecordDict({"arrays": ArrayRecord(message.content["arrays"].to_torch_state_dict())})
        message.content["arrays"]["w"] = Array(np.full(2, 666.0))
        message.content["config"]["server-round"] = 666
        del message.content["config"]
        return reply

    (replies,), sent = exchange(vandal)
    for reply in replies:
        assert torch.equal(reply.content["arrays"].to_torch_state_dict()["w"], W)
    assert torch.equal(sent["arrays"].to_torch_state_dict()["w"], W)
    assert sent["config"]["server-round"] == 1


class Together(ClientApp):
    """Trains clients at once: what a function does with their messages."""

    def __init__(self, change):
        super().__init__()
        self.change, self.received = change, []

    def train_many(self, messages, contexts):
        self.received += messages
        self.change(messages)
        return [Message(echo(*both), reply_to=both[0]) for both in zip(messages, contexts, strict=True)]


def at_once(change, own=()):
    """The app that trained three clients at once, and what was sent to them; to some of them a content of their own."""

    def body(grid):
        messages = to_all(grid.get_node_ids(), w=W.clone())
        for one in own:
            messages[one].content = messages[one].content.copy()
        grid.send_and_receive(messages)
        return messages

    app = Together(change)
    return app, within(app, 3, body, vectorize=3)


def drop_config(messages):
    del messages[1].content["config"]


def write_round(messages):
    messages[1].content["config"]["server-round"] = 2


def replace_content(messages):
    messages[1].content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(2))})})


def test_clients_that_train_at_once_share_one_copy_of_what_they_share():
    app, sent = at_once(replace_content, own=[2])
    assert app.received[0].content is not sent[0].content and app.received[2].content is not app.received[0].content
    app, _ = at_once(lambda messages: None)
    assert app.received[0].content is app.received[1].content is app.received[2].content


@pytest.mark.parametrize("change", [drop_config, write_round])
def test_a_client_that_changes_what_it_shares_ends_the_run_and_one_that_changes_its_own_does_not(change):
    with pytest.raises(RunError, match="changed the records"):
        at_once(change)
    _, sent = at_once(change, own=[1])
    assert sent[1].content["config"]["server-round"] == 1


def test_what_a_client_keeps_of_its_reply_does_not_change_what_was_sent():
    kept = []

    def hoarder(message, context):
        kept.append(ArrayRecord({"w": W.clone()}))
        return RecordDict({"arrays": kept[-1]})

    (replies,), _ = exchange(hoarder)
    for record in kept:
        record["w"] = Array(np.zeros(2))
    assert all(torch.equal(reply.content["arrays"].to_torch_state_dict()["w"], W) for reply in replies)


def test_a_client_is_told_its_partition_and_the_options():
    def who(message, context):
        facts = {**context.node_config, "rounds": context.run_config["rounds"]}
        context.run_config["rounds"] = 0  # its own copy
        return RecordDict({"facts": ConfigRecord(facts)})

    def body(grid):
        return [dict(reply.content["facts"]) for reply in grid.send_and_receive(to_all(grid.get_node_ids(), w=W))]

    facts = within(client_app(who), 2, body, {"rounds": 7})
    assert facts == [{"partition-id": number, "num-partitions": 2, "rounds": 7} for number in (0, 1)]


# --- state ---


def count(message, context):
    seen = int(context.state["seen"]["rounds"]) if "seen" in context.state else 0
    context.state["seen"] = MetricRecord({"rounds": seen + 1})
    if message.content["config"]["server-round"] == 13:
        raise ValueError("unlucky")
    return RecordDict({"metrics": MetricRecord({"rounds": seen + 1, "num-examples": 1})})


def test_a_client_keeps_its_state_and_only_its_own():
    def body(grid):
        nodes = grid.get_node_ids()
        first = grid.send_and_receive(to_all(nodes[:1], w=W))
        both = grid.send_and_receive(to_all(nodes, w=W))
        return [reply.content["metrics"]["rounds"] for reply in [*first, *both]]

    assert within(client_app(count), 2, body) == [1, 2, 1]


def test_a_client_that_empties_its_state_begins_anew():
    def forgetful(message, context):
        reply = count(message, context)
        if reply["metrics"]["rounds"] == 2:
            context.state.clear()
        return reply

    (replies, _) = exchange(forgetful, partitions=1, rounds=4)
    assert [one.content["metrics"]["rounds"] for (one,) in replies] == [1, 2, 1, 2]


def test_what_a_failed_client_did_to_its_state_is_not_kept():
    def body(grid):
        def ask(server_round):
            messages = to_all(grid.get_node_ids(), w=W)
            messages[0].content["config"]["server-round"] = server_round
            return grid.send_and_receive(messages)[0]

        first, failed, second = ask(1), ask(13), ask(2)
        assert failed.has_error()
        return first.content["metrics"]["rounds"], second.content["metrics"]["rounds"]

    assert within(client_app(count), 1, body) == (1, 2)


# --- failures ---


def test_a_client_that_calls_sys_exit_fails_and_the_others_work():
    def second_ends(message, context):
        if context.node_config["partition-id"] == 1:
            sys.exit(0)
        return echo(message, context)

    (replies,), _ = exchange(second_ends)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "in second_ends" in replies[1].error.reason and "sys.exit(0) was called" in replies[1].error.reason


def test_an_interrupt_within_a_client_is_the_users():
    def interrupted(message, context):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exchange(interrupted)


def test_an_exception_is_a_reply_with_its_traceback_and_the_others_work():
    def second_fails(message, context):
        if context.node_config["partition-id"] == 1:
            raise ZeroDivisionError("of partition one")
        return echo(message, context)

    (replies,), _ = exchange(second_fails)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    reason = replies[1].error.reason
    assert reason.startswith("Traceback")
    assert "in second_fails" in reason
    assert "ZeroDivisionError: of partition one" in reason
    assert replies[1].metadata.src_node_id == 1002


def test_a_message_that_the_app_has_no_answer_to_is_a_failure():
    def body(grid):
        message = Message(RecordDict(), dst_node_id=1001, message_type=MessageType.EVALUATE)
        return grid.send_and_receive([message])

    (reply,) = within(client_app(echo), 1, body)
    assert "No evaluate function registered" in reply.error.reason


def test_what_the_server_raises_comes_out_as_it_is_and_leaves_no_identity():
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id

    def body(grid):
        assert TaskIdentity.run_id == grid.run.run_id
        raise RunError("enough")

    with pytest.raises(RunError, match=r"^enough$"):
        within(client_app(echo), 1, body)
    assert (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id) == before


# --- messages ---


def test_replies_are_tied_to_their_messages():
    def body(grid):
        ids = list(grid.push_messages(to_all(grid.get_node_ids(), w=W)))
        assert len(set(ids)) == 2
        assert list(grid.pull_messages(["message-unknown"])) == []
        (second,) = grid.pull_messages(ids[1:])
        assert second.metadata.reply_to_message_id == ids[1]
        assert second.metadata.src_node_id == 1002
        assert list(grid.pull_messages(ids[1:])) == []  # handed out once
        (first,) = grid.pull_messages(ids)
        return first.metadata.reply_to_message_id == ids[0]

    assert within(client_app(echo), 2, body)


def test_types_and_bits_of_arrays_survive_the_wire():
    arrays = {
        "half": torch.tensor([0.1, -1e-7], dtype=torch.float16),
        "wide": torch.tensor([[1 / 3, float("inf")]], dtype=torch.float64),
        "count": torch.tensor(2**40),
        "empty": torch.zeros(0, 3),
        "column": torch.arange(6.0).reshape(2, 3).T,
    }

    def body(grid):
        (reply,) = grid.send_and_receive(to_all(grid.get_node_ids(), **arrays))
        return reply.content["arrays"].to_torch_state_dict()

    back = within(client_app(echo), 1, body)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert torch.equal(back[name], array)


# --- Flower's own loop ---


def test_flowers_own_fedavg_runs_on_it():
    """Client p adds p + 1 to the weights and has p + 1 examples: the mean step is (1 * 1 + 2 * 2 + 3 * 3) / 6."""

    def add(message, context):
        size = context.node_config["partition-id"] + 1
        arrays = [array + size for array in message.content["arrays"].to_numpy_ndarrays()]
        metrics = MetricRecord({"size": float(size), "num-examples": size})
        return RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})

    def body(grid):
        strategy = FedAvg(fraction_evaluate=0.0)
        return strategy.start(grid, ArrayRecord([np.zeros((2, 2)), np.ones(1)]), num_rounds=2)

    result = within(client_app(add), 3, body)
    matrix, vector = result.arrays.to_numpy_ndarrays()
    np.testing.assert_allclose(matrix, np.full((2, 2), 2 * 14 / 6), rtol=1e-12)
    np.testing.assert_allclose(vector, [1 + 2 * 14 / 6], rtol=1e-12)
    assert result.train_metrics_clientapp[2]["size"] == pytest.approx(14 / 6)
