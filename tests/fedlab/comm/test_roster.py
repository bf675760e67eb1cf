"""Who is connected, by partition: nodes that come late, go, come back, claim what is not theirs or never answer."""

from __future__ import annotations

import itertools
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlab.comm import roster as module
from fedlab.comm.event_rate import BURST
from fedlab.comm.roster import Roster
from fedlab.errors import RunError
from grids import Unruly, client_app, echo, within
from waiting import wait_until

NAMES = {0: "usps", 1: "svhn", 2: "mnist_m", 3: "optdigits"}


def by(body, partition_of, **unruly):
    """What ``body(grid)`` returns on an unruly grid."""
    app = client_app(echo)
    return within(app, 1, lambda _: body(Unruly(app, partition_of, **unruly)))


def recorder(events):
    """Return a callback that appends each event of a roster as (kind, fields)."""

    def on_event(kind, **fields):
        events.append((kind, fields))

    return on_event


def gathered(grid, clients, timeout=30.0, enough=None, **more):
    roster = Roster(grid, {number: NAMES[number] for number in range(clients)}, **more)
    roster.wait(range(clients), clients if enough is None else enough, timeout)
    return dict(sorted(roster.present.items()))


@pytest.mark.parametrize("nodes", list(itertools.permutations([(77, 0), (5, 1), (901, 2)])))
def test_nodes_are_known_by_partition_whatever_they_are_called(nodes):
    assert by(lambda grid: gathered(grid, 3), dict(nodes)) == {0: 77, 1: 5, 2: 901}


def test_more_clients_than_asked_are_ignored():
    assert by(lambda grid: gathered(grid, 2), {5: 2, 77: 0, 901: 1}) == {0: 77, 1: 901}


def test_a_node_that_comes_late_is_waited_for_and_each_is_asked_once():
    asked = []

    class Counting(Unruly):
        def push_messages(self, messages):
            messages = list(messages)
            asked.extend(message.metadata.dst_node_id for message in messages)
            return super().push_messages(messages)

    app = client_app(echo)
    found = within(app, 1, lambda _: gathered(Counting(app, {5: 0, 77: 1}, late={77}), 2, 5.0))
    assert found == {0: 5, 1: 77}
    assert asked == [5, 77]


def test_too_few_clients_end_in_time_with_a_sentence():
    started = time.monotonic()
    sentence = r"2 of 4 clients connected within 0.3 s; missing partitions: 1 \(svhn\), 3 \(optdigits\)\. Start them"
    with pytest.raises(RunError, match=sentence):
        by(lambda grid: gathered(grid, 4, 0.3), {5: 0, 77: 2})
    assert time.monotonic() - started < 5


def test_as_many_as_are_needed_will_do_once_the_time_is_up():
    assert by(lambda grid: gathered(grid, 4, 0.3, enough=2), {5: 0, 77: 2}) == {0: 5, 2: 77}


def test_a_node_that_never_answers_holds_nobody_back():
    with pytest.raises(RunError, match=r"1 of 2 clients connected within 0.3 s; missing partitions: 1 \(svhn\)\."):
        by(lambda grid: gathered(grid, 2, 0.3), {5: 0, 77: 1}, silent={77})
    found = by(lambda grid: gathered(grid, 2, 5.0), {4: 0, 5: 0, 77: 1}, silent={4}, late={77})
    assert found == {0: 5, 1: 77}


def test_nobody_at_all():
    with pytest.raises(RunError, match=r"0 of 2 clients connected within 0 s; missing partitions: 0 \(usps\), 1"):
        by(lambda grid: gathered(grid, 2, 0.0), {})


def test_the_second_node_of_a_partition_is_rejected_while_the_first_answers():
    events = []
    found = by(lambda grid: gathered(grid, 3, 0.5, enough=2, on_event=recorder(events)), {5: 0, 77: 1, 901: 1})
    assert found == {0: 5, 1: 77}
    ((reason),) = [fields["reason"] for kind, fields in events if kind == "refused"]
    assert "two clients both say that they hold partition 1 (svhn)" in reason


def test_it_takes_over_when_the_first_no_longer_answers(monkeypatch):
    monkeypatch.setattr(module, "CLAIM_TIMEOUT", 0.1)

    def body(grid):
        roster = Roster(grid, {0: "usps"})
        roster.wait([0], 1, 30.0)
        grid.silent = {5}
        grid.nodes[77] = 0
        wait_until(lambda: roster.poll() or roster.present == {0: 77}, "the second node", 5)
        return roster.present, roster.partition_of

    assert by(body, {5: 0}) == ({0: 77}, {77: 0})


def test_a_node_that_was_away_is_used_again_without_a_question():
    def body(grid):
        events = []
        roster = Roster(grid, {0: "usps", 1: "svhn"}, on_event=recorder(events))
        roster.wait([0, 1], 2, 30.0)
        partition = grid.nodes.pop(77)
        roster.poll()
        away = dict(roster.present)
        grid.nodes[77] = partition
        roster.poll()
        return away, roster.present, events

    away, back, events = by(body, {5: 0, 77: 1})
    assert (away, back) == ({0: 5}, {0: 5, 1: 77})
    assert [kind for kind, _ in events[-2:]] == ["left", "joined"]


def test_a_key_decides_whose_partition_it_is():
    events = []
    owners = {5: "usps", 77: "mnist_m"}
    with pytest.raises(RunError, match="1 of 2 clients connected.*mnist_m was refused: it claims partition 1 .'svhn'"):
        by(lambda grid: gathered(grid, 2, 1.0, owners=owners, on_event=recorder(events)), {5: 0, 77: 1, 901: 1})
    reasons = sorted(fields["reason"] for kind, fields in events if kind == "refused")
    assert reasons == [
        "it claims partition 1 ('svhn'), but its key is not registered",
        "it claims partition 1 ('svhn'), but its key is registered for 'mnist_m'",
    ]


def test_a_key_of_one_client_does_not_open_the_partition_of_another():
    """Partition 0 is that of usps, who is away; a node with the key of svhn claims it, in its own name or in that."""

    def named(name):
        app = ClientApp()

        @app.query()
        def query(message, context):
            return Message(RecordDict({"identity": ConfigRecord({"partition": 0, "name": name})}), reply_to=message)

        return app

    for claimed in ("svhn", "usps"):
        events = []
        app = named(claimed)

        def body(grid, events=events):
            roster = Roster(grid, {0: "usps", 1: "svhn"}, {77: "svhn"}, recorder(events))
            roster.poll()
            roster.poll()
            return roster.present

        found = within(app, 1, lambda _, app=app, body=body: body(Unruly(app, {77: 0})))
        assert found == {}
        assert [kind for kind, _ in events] == ["refused"]
        assert "its key is registered for 'svhn'" in events[0][1]["reason"]


def test_a_node_that_comes_and_goes_all_the_time_causes_few_events():
    events = []

    def body(grid):
        roster = Roster(grid, {0: "usps", 1: "svhn"}, on_event=recorder(events))
        roster.wait([0, 1], 2, 30.0)
        everybody = dict(grid.nodes)
        for turn in range(200):
            grid.nodes = everybody if turn % 2 else {77: 0}
            roster.poll()
        return roster.present

    assert by(body, {77: 0, 5: 1}) == {0: 77, 1: 5}
    flapping = [kind for kind, fields in events if fields.get("client") == "svhn"]
    assert len(flapping) == BURST and set(flapping) == {"joined", "left"}
    assert len([kind for kind, fields in events if fields.get("client") == "usps"]) == 1
