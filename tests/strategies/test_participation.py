"""A client that is absent from a round: what becomes of what is kept for it, and of the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.checks import check_participation
from fedlab.engines import inprocess
from fedlab.errors import ConfigError, RunError
from fedlab.seeds import seeded
from fedlab.strategies import aggregation

SEED, STEPS, BATCH, RATE = 5, 5, 4, 0.05  # of conftest.SMALL


@pytest.fixture
def schedule(tmp_path):
    """Options with which only these clients train in each round."""

    def write(*rounds):
        file = tmp_path / "schedule.txt"
        file.write_text("\n".join(rounds))
        return {"schedule": str(file), "rounds": len(rounds)}

    return write


def test_scaffold_keeps_an_absent_clients_variate_and_moves_c_by_those_who_answered(
    federate, matrices, fresh, schedule
):
    cohorts = [(0, 1, 2), (0, 2), (1,)]
    options = schedule(*(",".join("abc"[client] for client in cohort) for cohort in cohorts))
    outcome = federate("scaffold", **options, **{"client.momentum": 0.0})
    with seeded(SEED, "initialise"):
        x = fresh()
    c, own = np.zeros(3), np.zeros((3, 3))
    for server_round, cohort in enumerate(cohorts, 1):
        moved, learned = [], []
        for client in cohort:
            data, target = matrices(client)
            y = x.copy()
            with seeded(SEED, "train", server_round, client):
                for _ in range(STEPS):
                    rows = torch.randint(len(data), (BATCH,)).numpy()
                    y -= RATE * (2 / BATCH * data[rows].T @ (data[rows] @ y - target[rows]) + c - own[client])
            after = own[client] - c + (x - y) / (STEPS * RATE)
            moved.append(y - x)
            learned.append(after - own[client])
            own[client] = after
        x = x + np.mean(moved, 0)
        c = c + np.sum(learned, 0) / 3  # of all N clients, as in the paper
    np.testing.assert_allclose(outcome.weights, x, rtol=0, atol=2e-6)
    assert outcome.rounds[-1]["server"]["variate"] == pytest.approx(np.linalg.norm(c), rel=1e-4)
    assert outcome.rounds[3]["bytes"]["a"]["train_up"] == 0 < outcome.rounds[3]["bytes"]["b"]["train_up"]


def test_fedbn_keeps_an_absent_clients_batch_norms(record, schedule):
    seen, _ = record("fedbn", **schedule("a,b,c", "a,c", "a,b,c"))
    assert ("train", 2, 1) not in seen
    norms = [name for name in seen["train", 1, 1].answered if name.startswith("features.2.")]
    for name in norms:
        assert torch.equal(seen["train", 3, 1].received["arrays"][name], seen["train", 1, 1].answered[name])


def test_fednova_normalizes_over_those_who_answered(federate, schedule):
    alone = federate("fednova", **schedule("b"), **{"client.epochs": 1.0})
    average = federate("fedavg", **schedule("b"), **{"client.epochs": 1.0})
    np.testing.assert_allclose(alone.weights, average.weights, rtol=0, atol=1e-6)  # of one client both are its model


def test_dualadapt_adapts_to_the_last_heads_of_all_and_onboards_nobody(record, schedule):
    seen, directory = record("dualadapt", **schedule("a,b", "c", "a"))
    heads = directory.checkpoints.latest()[1]["strategy"]["heads"]
    assert sorted(heads) == [0, 1, 2]
    for name, tensor in seen["train", 1, 1].answered.items():
        assert torch.equal(heads[1][name], tensor)
    assert ("train", 2, 0) not in seen and ("train", 3, 2) not in seen
    assert (
        "only-mixture" not in seen["train", 2, 2].received
    )  # a client that trains for the first time is no late joiner


def test_startup_averages_the_students_that_answered(record, weighted_mean, schedule):
    seen, directory = record("startup", **schedule("a,b", "b,c"), **{"blobs.linear": True})
    mean = weighted_mean([seen["train", 2, 1], seen["train", 2, 2]])
    for name, tensor in directory.checkpoints.latest()[1]["strategy"]["student"].items():
        if name in mean:
            torch.testing.assert_close(tensor.double(), mean[name].double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", ["scaffold", "fedbn", "fednova", "dualadapt", "startup"])
def test_the_same_clients_are_sampled_whatever_the_strategy(record, strategy):
    cohorts = []
    for name in (strategy, "fedavg"):
        seen, _ = record(name, rounds=4, fraction_train=0.4, **{"blobs.linear": True})
        cohorts.append(sorted(key[1:] for key in seen if key[0] == "train"))
    assert cohorts[0] == cohorts[1] and len(cohorts[0]) == 4  # one of three clients a round


def test_clients_sampled_by_examples_weigh_the_same(federate, table, lines):
    rule = aggregation.make(lines, table("fedavg", sampling="examples", fraction_train=0.4))
    updates = [aggregation.ClientUpdate({"weight": torch.zeros(1, 2)}, count, {}) for count in (6, 15)]
    assert [rule.weight(update) for update in updates] == [1.0, 1.0]
    outcome = federate("fedavg", sampling="examples", fraction_train=0.4)
    assert all(len(line["bytes"]) == 3 for line in outcome.rounds)


def test_a_rule_that_needs_more_clients_than_a_round_has_is_refused(table, lines):
    with pytest.raises(ConfigError, match=r"'krum'.* needs 3 replies a round, .* sure of 1 .*fraction_train"):
        aggregation.make(lines, table("krum", fraction_train=0.4))


def test_a_rule_that_holds_all_replies_is_refused_beyond_its_memory(table, lines):
    with pytest.raises(ConfigError, match=r"'fedmedian' needs all replies .*3 models .*server.max_replies_mb"):
        aggregation.make(lines, table("fedmedian", **{"server.max_replies_mb": 1e-5}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"client.evaluate": False}, "client.evaluate and server.evaluate are both false"),
        ({"schedule": "/nowhere"}, "/nowhere cannot be read"),
    ],
)
def test_what_cannot_be_is_refused(table, options, words):
    with pytest.raises(ConfigError, match=words):
        check_participation(table("fedavg", **options))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_fractions_are_above_0_and_at_most_1(table, fraction):
    with pytest.raises(ConfigError, match=f"fraction_train.*got {fraction}"):
        table("fedavg", fraction_train=fraction)


def test_the_server_may_test_in_place_of_the_clients(federate, lines):
    every = {"client.evaluate": False, "server.evaluate": True, "evaluate_every": 2, "rounds": 5}
    outcome = federate("fedavg", **every)
    assert [sorted(line["score"]) for line in outcome.rounds] == [["loss"], [], ["loss"], [], ["loss"], ["loss"]]
    assert not any(line["clients"] for line in outcome.rounds)
    data = lines.data(None, "test")[:]
    x = torch.cat([data["x"], torch.ones(len(data["x"]), 1)], 1).double().numpy()
    expected = np.mean((x @ outcome.weights - data["y"].numpy()[:, 0]) ** 2)
    assert outcome.rounds[-1]["score"]["loss"] == pytest.approx(expected, rel=1e-4)


def test_clients_are_tested_every_so_many_rounds_and_in_the_last(federate):
    outcome = federate("fedavg", evaluate_every=2, rounds=3)
    assert [bool(line["clients"]) for line in outcome.rounds] == [True, False, True, True]


class Latecomer(inprocess.InProcessGrid):
    """Nodes that are asked for their partitions, of which b's connects after ``training`` rounds of the others."""

    training = 1

    def __init__(self, host):
        super().__init__(host)
        self.nodes, self.partitions, self.trained = host.partitions, None, 0

    def get_node_ids(self):
        return [node for node, partition in self.nodes.items() if partition != 1 or self.trained >= self.training]

    def push_messages(self, messages):
        messages = list(messages)
        self.trained += any(one.metadata.message_type == "train" for one in messages)
        return super().push_messages(messages)


def test_a_round_waits_for_the_clients_that_its_schedule_names_and_for_no_other(federate, monkeypatch, schedule):
    monkeypatch.setattr(inprocess, "InProcessGrid", Latecomer)
    outcome = federate("fedavg", **schedule("a,c", "a,b,c", "c"), **{"comm.connect_timeout": 60.0})
    tested = [set(line["clients"]) for line in outcome.rounds]
    assert tested == [{"a", "c"}, {"a", "c"}, {"a", "b", "c"}, {"a", "b", "c"}]
    trained = [{name for name, sizes in line["bytes"].items() if sizes["train_up"]} for line in outcome.rounds[1:]]
    assert trained == [{"a", "c"}, {"a", "b", "c"}, {"c"}]


def test_a_client_that_the_schedule_names_and_that_never_connects_is_named(federate, monkeypatch, schedule):
    monkeypatch.setattr(inprocess, "InProcessGrid", Latecomer)
    monkeypatch.setattr(Latecomer, "training", 9)
    with pytest.raises(RunError, match=r"1 of 2 clients connected within 0.1 s; missing partitions: 1 \(b\)"):
        federate("fedavg", **schedule("a,c", "a,b"), **{"comm.connect_timeout": 0.1})
