"""Messages by partition: one order whatever the network does, bytes, and failures and bad replies that are named."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp.strategy import FedAvg

from fedlab.comm.grid import PartitionGrid, no_validation
from fedlab.comm.roster import Roster
from fedlab.errors import RunError
from grids import Unruly, client_app, echo, to_all, within

NAMES = {0: "usps", 1: "svhn", 2: "mnist_m", 3: "optdigits"}


def by(body, partition_of, train=echo, **unruly):
    """What ``body(grid)`` returns on an unruly grid."""
    app = client_app(train)
    return within(app, 1, lambda _: body(Unruly(app, partition_of, **unruly)))


def roster_grid(grid, clients=3, min_clients=3, **more):
    seen = PartitionGrid(Roster(grid, {n: NAMES[n] for n in range(clients)}), min_clients=min_clients, **more)
    seen.wait_for_clients(1, 30.0)
    return seen


# --- one order, one set of bits ---


def weights(message, context):
    """Arrays whose float32 sum depends on the order of its terms."""
    value = (1e8, 1.0, -1e8)[context.node_config["partition-id"]]
    metrics = MetricRecord({"value": value, "num-examples": 1})
    return RecordDict({"arrays": ArrayRecord({"w": Array(np.full(3, value, np.float32))}), "metrics": metrics})


def aggregated(nodes, order):
    def body(grid):
        seen = roster_grid(grid)
        replies = seen.send_and_receive(to_all(seen.get_node_ids(), w=torch.zeros(3)))
        arrays, metrics = FedAvg().aggregate_train(1, replies)
        partitions = [seen.partition_of[reply.metadata.src_node_id] for reply in replies]
        return partitions, arrays["w"].numpy().tobytes(), metrics["value"]

    return by(body, nodes, train=weights, order=order)


def test_replies_in_any_order_from_nodes_in_any_order_give_the_same_bits():
    results = [
        aggregated(dict(nodes), order)
        for nodes in ([(77, 0), (5, 1), (901, 2)], [(901, 0), (77, 1), (5, 2)])
        for order in itertools.permutations([5, 77, 901])
    ]
    assert len(results) == 12
    assert all(result == results[0] for result in results)
    assert results[0][0] == [0, 1, 2]


def test_the_numbers_of_that_test_do_depend_on_the_order():
    a, b, c = (np.float32(value) / np.float32(3) for value in (1e8, 1.0, -1e8))
    assert (a + b) + c != (a + c) + b


def test_nodes_are_listed_by_partition_and_one_that_left_is_absent():
    def body(grid):
        seen = roster_grid(grid, clients=2, min_clients=1)
        before = seen.get_node_ids()
        del grid.nodes[5]
        seen.start_round(2, 0.0)
        return before, seen.get_node_ids(), seen.missing()

    assert by(body, {5: 1, 901: 2, 77: 0}) == ([77, 5], [77], [1])


def test_too_few_at_the_start_of_a_round_are_waited_for_and_then_the_run_stops():
    def body(grid):
        seen = roster_grid(grid, clients=2, min_clients=2)
        del grid.nodes[5]
        seen.start_round(2, 0.05)

    with pytest.raises(RunError, match=r"1 of 2 clients connected within 0.05 s; missing partitions: 1 \(svhn\)"):
        by(body, {5: 1, 77: 0})


def test_a_client_that_arrives_later_is_not_asked_before():
    def body(grid):
        seen = roster_grid(grid, join_rounds={1: 3})
        before, need = seen.get_node_ids(), seen.needed
        seen.start_round(3, 30.0)
        return before, need, seen.get_node_ids(), seen.needed

    assert by(body, {77: 0, 5: 1, 901: 2}) == ([77, 901], 2, [77, 5, 901], 3)


# --- bytes ---


def test_bytes_are_those_of_the_contents_as_serialized():
    def sized(message, context):
        size = 10 ** (1 + context.node_config["partition-id"])
        return RecordDict({"arrays": ArrayRecord({"w": torch.zeros(size)})})

    def body(grid):
        seen = roster_grid(grid)
        messages = to_all(seen.get_node_ids(), w=torch.zeros(50))
        down = recorddict_to_proto(messages[0].content).ByteSize()
        replies = seen.send_and_receive(messages)
        up = [recorddict_to_proto(reply.content).ByteSize() for reply in replies]
        return seen.stats, down, up

    stats, down, up = by(body, {77: 0, 5: 1, 901: 2}, train=sized)
    assert stats.down == {0: down, 1: down, 2: down}
    assert stats.up == dict(enumerate(up))
    assert down > 4 * 50  # float32
    assert up[2] - up[1] == pytest.approx(4 * 900, abs=10)


def test_traffic_is_that_of_the_last_call():
    def body(grid):
        seen = roster_grid(grid)
        seen.send_and_receive(to_all(seen.get_node_ids(), w=torch.zeros(1)))
        seen.send_and_receive(to_all(seen.get_node_ids()[:1], w=torch.zeros(1)))
        return seen.stats

    stats = by(body, {77: 0, 5: 1, 901: 2})
    assert list(stats.down) == list(stats.up) == [0]


def test_each_valid_reply_is_told_as_it_comes():
    told = []

    def body(grid):
        seen = roster_grid(
            grid, on_replies=lambda replies: told.extend((one, type(reply).__name__) for one, reply in replies)
        )
        seen.send_and_receive(to_all(seen.get_node_ids(), w=torch.zeros(1)))

    by(body, {77: 0, 5: 1, 901: 2}, order=[901, 77, 5])
    assert told == [(2, "Message"), (0, "Message"), (1, "Message")]


# --- failures ---


def faulty(*partitions):
    def train(message, context):
        if (partition := context.node_config["partition-id"]) in partitions:
            raise OSError(f"disk of {partition} is gone")
        return echo(message, context)

    return train


def ask(grid, min_clients, timeout=None, **more):
    seen = roster_grid(grid, min_clients=min_clients, **more)
    replies = seen.send_and_receive(to_all(seen.get_node_ids(), w=torch.zeros(1)), timeout=timeout)
    return [seen.partition_of[reply.metadata.src_node_id] for reply in replies], seen.stats


def test_a_failed_client_is_named_with_its_traceback_once():
    with pytest.raises(RunError) as caught:
        by(lambda grid: ask(grid, min_clients=3), {77: 0, 5: 1, 901: 2}, train=faulty(1, 2), order=[901, 5, 77])
    sentence = str(caught.value)
    assert "2 of 3 clients failed: partition 1 (svhn), 2 (mnist_m); the run needs 3 valid replies" in sentence
    assert "First failure, of partition 1:\nTraceback" in sentence
    assert sentence.count("Traceback") == 1
    assert "OSError: disk of 1 is gone" in sentence


def test_a_failure_is_tolerated_and_recorded_when_enough_are_left():
    partitions, stats = by(lambda grid: ask(grid, min_clients=2), {77: 0, 5: 1, 901: 2}, train=faulty(1))
    assert partitions == [0, 2]
    ((failure),) = stats.failures
    assert failure.partition == 1
    assert "OSError: disk of 1 is gone" in failure.reason
    assert set(stats.up) == {0, 2}
    assert set(stats.down) == {0, 1, 2}  # it was asked


def test_all_clients_failing_is_never_tolerated():
    with pytest.raises(RunError, match=r"all clients failed: partition 0 \(usps\), 1 \(svhn\), 2 \(mnist_m\); "):
        by(lambda grid: ask(grid, min_clients=1), {77: 0, 5: 1, 901: 2}, train=faulty(0, 1, 2))


def test_a_phase_that_asks_fewer_needs_no_more_than_it_asked():
    def body(grid):
        seen = roster_grid(grid)
        assert seen.send_and_receive([]) == []
        return len(seen.send_and_receive(to_all(seen.get_node_ids()[:2], w=torch.zeros(1))))

    assert by(body, {77: 0, 5: 1, 901: 2}) == 2


@pytest.mark.parametrize("min_clients", [2, 3])
def test_a_client_that_does_not_answer_in_time_has_failed(min_clients):
    def body(grid):
        seen = roster_grid(grid, min_clients=min_clients)
        grid.silent = {5}
        replies = seen.send_and_receive(to_all(seen.get_node_ids(), w=torch.zeros(1)), timeout=0.1)
        return len(replies), seen.stats.failures

    nodes = {77: 0, 5: 1, 901: 2}
    if min_clients == 3:
        with pytest.raises(RunError, match=r"1 of 3 clients failed: partition 1 \(svhn\).*\nno reply within 0.1 s"):
            by(body, nodes)
    else:
        replies, failures = by(body, nodes)
        assert replies == 2
        assert [(failure.partition, failure.reason) for failure in failures] == [
            (1, "no reply within 0.1 s of silence")
        ]


def test_a_reply_without_a_reason_is_still_a_sentence():
    def body(grid):
        seen = roster_grid(grid, clients=1, min_clients=1)
        deliver = grid._deliver

        def reasonless(messages):
            replies = deliver(messages)
            replies[0].error.__dict__["_reason"] = None
            return replies

        grid._deliver = reasonless
        seen.send_and_receive(to_all(seen.get_node_ids(), w=torch.zeros(1)))

    with pytest.raises(RunError, match="no reason given"):
        by(body, {77: 0}, train=faulty(0))


# --- the rest is the grid below ---


def test_everything_else_goes_to_the_grid_below():
    def body(grid):
        seen = roster_grid(grid)
        assert seen.run is grid.run
        seen.set_run(other := type(grid.run).create_empty(run_id=5))
        assert grid.run is other
        message = seen.create_message(RecordDict({"c": ConfigRecord({"a": 1})}), "query", 77, "g")
        (number,) = seen.push_messages([message])
        (reply,) = seen.pull_messages([number])
        return reply.content["identity"]["partition"]

    assert by(body, {77: 0, 5: 1, 901: 2}) == 0


# --- replies that may not be used ---


def refuse(message, reply):
    if reply.content["metrics"]["partition"] == 1:
        raise ValueError("its head is absurd")


def test_a_bad_reply_is_refused_named_and_left_out():
    def body(grid):
        seen = roster_grid(grid, min_clients=2)
        messages = to_all(seen.get_node_ids(), w=torch.zeros(1))
        replies = seen.send_and_validate(messages, idle_timeout=5, check=refuse)
        return [seen.partition_of[reply.metadata.src_node_id] for reply in replies], seen.stats.failures

    partitions, (failure,) = by(body, {77: 0, 5: 1, 901: 2})
    assert partitions == [0, 2]
    assert (failure.partition, failure.kind) == (1, "refused")
    assert failure.reason == "its reply was refused: ValueError: its head is absurd"


def test_a_client_is_told_once_in_its_next_message_what_was_refused_and_the_bytes_are_counted():
    seen_by_client = []

    def train(message, context):
        partition = context.node_config["partition-id"]
        seen_by_client.append((partition, dict(message.content["refused"]) if "refused" in message.content else None))
        return echo(message, context)

    def body(grid):
        seen, down = roster_grid(grid, min_clients=2), []
        for check in (refuse, no_validation, no_validation):
            seen.send_and_validate(to_all(seen.get_node_ids(), w=torch.zeros(1)), idle_timeout=5, check=check)
            down.append(seen.stats.down)
        told = ConfigRecord({"round": 1, "reason": "ValueError: its head is absurd"})
        return down, recorddict_to_proto(RecordDict({"refused": told})).ByteSize(), seen.refusals.unreported

    (first, second, third), size, left = by(body, {77: 0, 5: 1, 901: 2}, train=train)
    assert [told for partition, told in seen_by_client if partition == 1] == [
        None,
        {"round": 1, "reason": "ValueError: its head is absurd"},
        None,
    ]
    assert {told for partition, told in seen_by_client if partition != 1} == {None}
    assert second == {0: first[0], 1: first[1] + size, 2: first[2]}
    assert third == first
    assert left == {}


def test_a_node_that_is_gone_fails_alone_and_is_not_asked_again_in_the_round():
    def body(grid):
        seen = roster_grid(grid, min_clients=2)
        grid.gone = {5}
        replies = seen.send_and_validate(to_all(seen.get_node_ids(), w=torch.zeros(1)), idle_timeout=60)
        partitions = [seen.partition_of[reply.metadata.src_node_id] for reply in replies]
        return partitions, [(failure.partition, failure.kind) for failure in seen.stats.failures], seen.get_node_ids()

    assert by(body, {77: 0, 5: 1, 901: 2}) == ([0, 2], [(1, "gone")], [77, 901])


def test_messages_that_flower_s_server_does_not_take_end_the_run():
    def body(grid):
        seen = roster_grid(grid)
        grid.push_messages = lambda messages: []
        seen.send_and_validate(to_all(seen.get_node_ids(), w=torch.zeros(1)), idle_timeout=60)

    with pytest.raises(RunError, match="did not take the messages to the clients: they are too large"):
        by(body, {77: 0, 5: 1, 901: 2})


@pytest.mark.parametrize("reason", [" \n ", "", "\x1b[2J"])
def test_a_blank_reason_is_a_sentence_too(reason):
    ((failure),) = by(lambda grid: with_reason(grid, reason), {77: 0, 5: 1, 901: 2}, train=faulty(1))
    assert failure.reason == ("[2J" if reason.strip() else "no reason given")


def test_a_long_reason_is_cut_and_escape_codes_lose_their_escape():
    reason = "\x1b]0;owned\x07" + "a" * 40_000_000 + "\u202edesrever: the error"
    ((failure),) = by(lambda grid: with_reason(grid, reason), {77: 0, 5: 1, 901: 2}, train=faulty(1))
    assert len(failure.reason.encode()) <= 2_000
    assert failure.reason.startswith("]0;ownedaaa") and failure.reason.endswith("desrever: the error")


def with_reason(grid, reason):
    """The failures of a phase in which the errors of clients have this reason."""
    seen = roster_grid(grid, min_clients=2)
    deliver = grid._deliver

    def reworded(messages):
        replies = deliver(messages)
        for reply in replies:
            if reply.has_error():
                reply.error.__dict__["_reason"] = reason
        return replies

    grid._deliver = reworded
    seen.send_and_receive(to_all(seen.get_node_ids(), w=torch.zeros(1)))
    return seen.stats.failures


def foreign(grid, change):
    """Failures of a phase in which the head of the reply of partition 1 is changed, and the partitions used."""
    seen = roster_grid(grid, min_clients=2)
    deliver = grid._deliver

    def changed(messages):
        replies = deliver(messages)
        for reply in replies:
            if reply.metadata.src_node_id == 5:
                change(reply.metadata.__dict__)
        return replies

    grid._deliver = changed
    replies = seen.send_and_receive(to_all(seen.get_node_ids(), w=torch.zeros(1)), timeout=0.2)
    used = [seen.partition_of[reply.metadata.src_node_id] for reply in replies]
    return used, [(failure.partition, failure.kind) for failure in seen.stats.failures]


def test_a_reply_in_the_name_of_another_node_is_refused():
    found = by(lambda grid: foreign(grid, lambda head: head.update(_src_node_id=77)), {77: 0, 5: 1, 901: 2})
    assert found == ([0, 2], [(1, "refused")])


def test_a_reply_to_a_message_that_nobody_sent_is_ignored():
    change = lambda head: head.update(_reply_to_message_id="f" * 64)  # noqa: E731
    found = by(lambda grid: foreign(grid, change), {77: 0, 5: 1, 901: 2})
    assert found == ([0, 2], [(1, "late")])


def test_a_client_whose_replies_are_refused_three_times_in_a_row_is_left_out_and_told():
    events, checks = [], [refuse, no_validation, refuse, refuse, refuse, no_validation]

    def body(grid):
        roster = Roster(grid, NAMES, on_event=lambda kind, **fields: events.append((kind, fields)))
        seen = PartitionGrid(roster, min_clients=1)
        seen.wait_for_clients(1, 30.0)
        used = []
        for number, check in enumerate(checks, start=1):
            seen.start_round(number, 1.0)
            messages = to_all(seen.get_node_ids(), w=torch.zeros(1))
            replies = seen.send_and_validate(messages, idle_timeout=5, check=check)
            used.append([seen.partition_of[reply.metadata.src_node_id] for reply in replies])
        resumed = PartitionGrid(Roster(grid, NAMES), min_clients=3)
        resumed.wait_for_clients(7, 30.0)
        resumed.restore(seen.refusals.state())
        return used, seen.refusals.left_out[1], resumed.get_node_ids()

    used, reason, resumed = by(body, {77: 0, 5: 1, 901: 2, 6: 3})
    assert used == [[0, 2, 3], [0, 1, 2, 3], [0, 2, 3], [0, 2, 3], [0, 2, 3], [0, 2, 3]]
    assert "3 of its replies in a row were refused" in reason and "its head is absurd" in reason
    assert [fields["reason"] for kind, fields in events if kind == "refused"] == [reason]
    assert resumed == [77, 901, 6]


def test_too_few_clients_for_those_that_are_left_out_is_a_sentence():
    def body(grid):
        seen = roster_grid(grid, min_clients=2, clients=2)
        seen.refusals.left_out[1] = "three of its replies were refused"
        seen.start_round(2, 0.05)

    with pytest.raises(RunError, match=r"1 client left, and the run needs 2 .*Left out: 1 \(svhn\): three"):
        by(body, {77: 0, 5: 1})


def test_a_reply_over_the_limit_is_refused():
    def body(grid):
        seen = roster_grid(grid, min_clients=3, max_reply_mb=1e-6)
        seen.send_and_validate(to_all(seen.get_node_ids(), w=torch.zeros(1)), idle_timeout=5)

    with pytest.raises(RunError, match=r"all clients failed.*\n.*refused: it has 0.0 MB, and option comm.max_reply_mb"):
        by(body, {77: 0, 5: 1, 901: 2})


def test_a_deadline_leaves_a_straggler_out_of_that_round_only():
    def body(grid):
        seen = roster_grid(grid, min_clients=2, round_timeout=0.2)
        grid.silent = {5}
        first = seen.send_and_validate(to_all(seen.get_node_ids(), w=torch.zeros(1)), idle_timeout=60)
        kinds = [(failure.partition, failure.kind) for failure in seen.stats.failures]
        assert seen.get_node_ids() == [77, 901]  # nor is it waited for when the round is tested
        grid.silent = set()
        seen.start_round(2, 30.0)
        return (
            len(first),
            kinds,
            len(seen.send_and_validate(to_all(seen.get_node_ids(), w=torch.zeros(1)), idle_timeout=60)),
        )

    assert by(body, {77: 0, 5: 1, 901: 2}) == (2, [(1, "late")], 3)


def test_a_deadline_acts_between_clients_of_one_process():
    """The clock stands still but for the clients' work: 3 s each."""
    now = [0.0]

    def works(message, context):
        now[0] += 3
        return echo(message, context)

    def body(grid):
        grid.partitions = dict(grid.nodes)
        seen = roster_grid(grid, clients=4, min_clients=1, round_timeout=5.0)
        first = seen.send_and_validate(to_all(seen.get_node_ids(), w=torch.zeros(1)), idle_timeout=1)
        late = [(failure.partition, failure.kind, failure.reason) for failure in seen.stats.failures]
        seen.start_round(2, 30.0)
        again = seen.send_and_validate(to_all(seen.get_node_ids()[2:], w=torch.zeros(1)), idle_timeout=1)
        return len(first), late, len(again), grid._waiting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now[0])
        patch.setattr("time.sleep", lambda seconds: None)
        found = by(body, {77: 0, 5: 1, 901: 2, 6: 3}, train=works)
    late = [(2, "late", "no reply within 5 s"), (3, "late", "no reply within 5 s")]
    assert found == (2, late, 2, {})


def test_whom_a_phase_waits_for_is_told_at_growing_intervals():
    told = []

    def body(grid):
        seen = roster_grid(grid, min_clients=2, round_timeout=0.4, on_waiting=lambda *waiting: told.append(waiting))
        grid.silent = {5}
        seen.send_and_validate(to_all(seen.get_node_ids(), w=torch.zeros(1)), idle_timeout=60)

    by(body, {77: 0, 5: 1, 901: 2})
    assert 1 <= len(told) <= 2
    assert all(partitions == [1] and 0 < left < 0.4 for partitions, left in told)


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_a_coarse_wire_format_is_decoded_on_receipt_and_saves_bytes(form):
    def body(grid):
        sizes = []
        for wire_format in ("float32", form):
            seen = roster_grid(grid, wire_format=wire_format)
            seen.send_and_validate(
                to_all(seen.get_node_ids(), w=torch.linspace(-1, 1, 4000).view(4, 1000)), idle_timeout=5
            )
            sizes.append(seen.stats.down[0])
        return sizes

    full, coarse = by(body, {77: 0, 5: 1, 901: 2})
    assert coarse < full * (0.6 if form == "float16" else 0.35)
