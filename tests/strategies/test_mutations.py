"""Mutated replies over every strategy, through the real decoder and grid: objects of Flower's store, then a round.

One of five clients sends a mutation of its honest reply: of its records and arrays, of its head, or of the bytes of an
object. Whatever it is, the honest clients are used, the server raises nothing, and what it accepts keeps the rules that
:func:`forbidden` states on its own, without the code of the checks.
"""

from __future__ import annotations

import copy
import logging
import math
from contextlib import suppress

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from fedlab import registry
from fedlab.comm.foreign_text import MAX_REASON
from fedlab.comm.grid import PartitionGrid
from fedlab.comm.roster import Roster
from fedlab.engines.flower_internals import set_task_identity
from fedlab.engines.superlink_grid import SuperLinkGrid
from fedlab.runs.client_state import ClientState
from fedlab.seeds import seeded
from fedlab.strategies import validation
from fedlab.strategies.protocol import CONFIG, EXAMPLES, METRICS, ROUND, ClientContext
from mutated_replies import MUTATION, all_finite, mutate
from object_links import RUN_ID, ObjectLink
from tables import server_strategy
from toy import SMALL, Blobs

NODES = {5: 0, 77: 1, 8: 2, 4: 3, 901: 4}
OPTIONS = {"dualadapt.em_steps": 3, "fedtrimmedavg.trim_fraction": 0.4, "client.learning_rate": 0.05}
TARGETS = "usps,optdigits,mnist_m,synthdigits,svhn"
TRAINING = [name for name in registry.STRATEGIES if registry.find("strategy", name).spec.upload != "nothing"]


class Round:
    """The first round of a strategy: its messages, the honest replies of five clients, and the server before it."""

    def __init__(self, name, folder):
        set_task_identity(RUN_ID, 1)
        spec = registry.find("strategy", name).spec
        mine = {key: value for key, value in OPTIONS.items() if key.partition(".")[0] in (name, "client")}
        plain = {key: value for key, value in SMALL.items() if name == "dualadapt" or not key.startswith("dualadapt.")}
        base = {
            **plain,
            "workload": "digits",
            "strategy": name,
            "digits.targets": "usps,optdigits,mnist_m,synthdigits,svhn",
        }
        self.config = registry.load_config({**base, **mine})
        workload = Blobs("a,b,c,d,e", client_labels=spec.needs_client_labels, linear=True)
        self.link = ObjectLink(NODES, verify=False)
        self.grid = PartitionGrid(
            Roster(SuperLinkGrid(self.link.grid, 1.0), dict(enumerate("abcde"))), min_clients=1, round_timeout=30.0
        )
        self.grid.refusals.add = lambda *refusal: False  # the next mutation is to be looked at, too
        self.link.on_push = self.answer
        self.grid.wait_for_clients(1, 5.0)
        self.server = server_strategy(self.config, workload)
        with seeded("mutations"):
            arrays = self.server.initialize()
            messages = list(self.server.configure_train(1, arrays, ConfigRecord(), self.grid))
        self.messages = [(one.metadata.dst_node_id, recorddict_to_proto(one.content)) for one in messages]
        self.honest = {}
        for message in messages:
            partition = NODES[message.metadata.dst_node_id]
            state = ClientState(folder / str(partition)) if spec.client_state else ClientState(None)
            with seeded("client", partition):
                sent = recorddict_from_proto(recorddict_to_proto(message.content))
                message.content = sent
                content = spec.client.train(workload, message, ClientContext(partition, self.config, state))
            content[CONFIG] = ConfigRecord({ROUND: 1})
            self.honest[message.metadata.dst_node_id] = recorddict_to_proto(content)
        self.before = copy.deepcopy(self.server.__dict__)
        self.act = None

    def answer(self, message):
        """Answer as a client does; node 5 as the mutation says."""
        node = message.metadata.dst_node_id
        set_task_identity(RUN_ID, node)
        if message.metadata.message_type == "query":
            identity = RecordDict({"identity": ConfigRecord({"partition": NODES[node]})})
            self.link.answer(Message(identity, reply_to=message))
        else:
            reply = Message(recorddict_from_proto(self.honest[node]), reply_to=message)
            (self.act if node == 5 else self.link.answer)(reply)
        set_task_identity(RUN_ID, 1)

    def run(self, act):
        """Return the reply of node 5 if it was accepted, else None, and the failures; aggregate what was accepted."""
        self.act = act
        self.server.__dict__.update(copy.deepcopy(self.before))
        self.grid.start_round(1, 5.0)
        messages = [Message(recorddict_from_proto(sent), node, "train") for node, sent in self.messages]
        with seeded("exchange"):
            replies = self.grid.send_and_validate(messages, idle_timeout=60, check=self.check)
        kept = {reply.metadata.src_node_id: copy.deepcopy(reply.content) for reply in replies}
        with seeded("aggregate"):
            arrays, _ = self.server.aggregate_train(1, replies)
        assert arrays is None or all_finite(dict(arrays.to_torch_state_dict()))
        assert all_finite(self.server.state())
        assert kept.keys() >= NODES.keys() - {5}, self.grid.stats.failures
        return kept.get(5), self.grid.stats.failures

    def check(self, message, reply):
        validation.validate_reply(message, reply)
        self.server.check(reply)

    def forbidden(self, content):
        """Return what an accepted content has that no reply may have."""
        like, wrong = recorddict_from_proto(self.honest[5]), []
        if set(content) != set(like):
            return [f"records {sorted(content)}"]
        for name, record in content.items():
            if isinstance(record, ArrayRecord):
                for key in record.keys() ^ like[name].keys():
                    wrong.append(f"array {name}/{key}")
                for key in record.keys() & like[name].keys():
                    found, usual = record[key].numpy(), like[name][key].numpy()
                    shape = found.shape == usual.shape or key == "quantiles"
                    if not shape or found.dtype != usual.dtype or not (abs(found) < 1e30).all():
                        wrong.append(f"{name}/{key}: {found.dtype} {found.shape} up to {abs(found).max()}")
                    if "var" in key and "running" in key and (found < 0).any():
                        wrong.append(f"{name}/{key} is negative")
        numbers = content[METRICS]
        assert isinstance(numbers, MetricRecord)
        wrong += [f"metric {name}" for name in numbers.keys() - like[METRICS].keys()]
        wrong += [name for name, value in numbers.items() if not abs(value) <= 1e12 or math.isnan(value)]
        if not 1 <= numbers[EXAMPLES] <= 10**9 or content[CONFIG][ROUND] != 1:
            wrong.append("examples or round")
        return wrong


@pytest.fixture(scope="module", autouse=True)
def quiet():
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """The round of a strategy, made when it is first asked for."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = Round(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


PLACE = some.integers(0, 10_000)
CONTENTS = some.tuples(some.just("content"), some.lists(MUTATION, min_size=1, max_size=3))
HEADS = some.tuples(
    some.just("head"),
    some.tuples(
        some.sampled_from(["_reply_to_message_id", "_src_node_id", "_message_type", "_run_id", "_group_id", "_ttl"]),
        some.sampled_from(["f" * 64, "", "query", "train", 77, 1, -1, 2**63 - 1, 0.0]),
    ),
)
OBJECTS = some.tuples(
    some.just("object"),
    some.tuples(
        some.sampled_from(["flip", "cut", "extend", "swap", "other tree", "missing", "record as root", "chunks"]),
        PLACE,
        some.integers(0, 255),
    ),
)
ERRORS = some.tuples(
    some.just("error"),
    some.tuples(
        some.sampled_from([0, 2, 3, 5, 9001, 10**6, -1]),
        some.sampled_from(["", " \n ", "\x1b[2J", "a" * 5_000, "[/b]", "\u202e"]) | some.text(max_size=40),
    ),
)


def sender(link, kind, what):
    """Return the function that sends a mutation of the reply that it is given."""

    def send(reply):
        head = copy.copy(reply.metadata)
        head.__dict__ = dict(reply.metadata.__dict__)
        if kind == "content":
            for mutation in what:
                with suppress(Exception):  # what was spoilt before cannot always be spoilt again
                    mutate(reply.content, *mutation)
        elif kind == "head":
            reply.metadata.__dict__[what[0]] = what[1]
        elif kind == "error":
            reply = Message(Error(*what), reply_to=link.sent[head.reply_to_message_id])
        change = (lambda contents, tree: spoilt(contents, tree, *what)) if kind == "object" else unchanged
        try:
            contents = link.announce(reply, head, change)
        except Exception:  # Flower's own client could not send that
            return link.answer(Message(Error(2, "cannot be sent"), reply_to=link.sent[head.reply_to_message_id]))
        return link.put(contents)

    return send


def unchanged(contents, tree):
    return contents, tree


def spoilt(contents, tree, how, place, value):
    """Return objects of which one is changed, and its parents name its new id; or a tree that is not theirs."""
    keys = list(contents)
    key = keys[place % len(keys)]
    if how == "missing":
        return contents, ObjectTree(object_id=tree.object_id)
    if how == "record as root":
        return contents, ObjectTree(object_id=key)
    if how == "other tree":
        tree.children.add(object_id=key)
        return contents, tree
    content = bytearray(contents[key])
    if how == "flip":
        content[(place * 7) % len(content)] ^= value or 1
    elif how == "cut":
        del content[-(1 + place % len(content)) :]
    elif how == "extend":
        content += bytes([value]) * (1 + place % 50)
    elif how == "chunks":
        content = bytearray(bytes(content).replace(b'"arraychunk_ids": [0]', b'"arraychunk_ids": [0, 0, 9]'))
    elif how == "swap":
        content = bytearray(contents[keys[value % len(keys)]])
    renamed = {key: get_object_id(bytes(content))}
    changed = {renamed[key]: bytes(content) or b" "}
    for old, data in list(contents.items()):
        if old == key:
            continue
        for before, after in renamed.items():
            data = data.replace(before.encode(), after.encode())
        renamed[old] = get_object_id(data)
        changed[renamed[old]] = data
    return changed, renamed_tree(tree, renamed)


def renamed_tree(tree, renamed):
    children = [renamed_tree(child, renamed) for child in tree.children]
    return ObjectTree(object_id=renamed[tree.object_id], children=children)


def attack(federation, kind, what):
    accepted, failures = federation.run(sender(federation.link, kind, what))
    assert all(len(failure.reason.encode()) <= MAX_REASON + 100 and failure.reason.strip() for failure in failures)
    if accepted is not None:
        assert federation.forbidden(accepted) == []
    else:
        assert [failure.partition for failure in failures] == [0]


NOTHING_SHARED = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
MUTATED = some.one_of(CONTENTS, CONTENTS, CONTENTS, HEADS, OBJECTS, ERRORS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRAINING)
def test_an_honest_reply_is_accepted_and_some_mutations_are_harmless(rounds, name):
    accepted, failures = rounds(name).run(rounds(name).link.answer)
    assert accepted is not None and failures == []


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, **NOTHING_SHARED)
@given(name=some.sampled_from(TRAINING), mutated=MUTATED)
def test_no_mutated_reply_is_believed_or_stops_the_server(rounds, name, mutated):
    attack(rounds(name), *mutated)


@pytest.mark.paper
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=6_000, **NOTHING_SHARED)
@given(name=some.sampled_from(TRAINING), mutated=MUTATED)
def test_none_of_thousands_either(rounds, name, mutated):
    attack(rounds(name), *mutated)
