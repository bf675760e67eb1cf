"""Limits that clients of a round set each other: numbers by hand, and a round within them that keeps its bits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

import fedlab
import toy
from fedlab import registry
from fedlab.comm.tensors import tensor_record, tensors_of
from fedlab.config.training_options import ClientConfig
from fedlab.engines.flower_internals import task_identity
from fedlab.strategies.agreement import Agreement, mean_cosines, shortened
from fedlab.strategies.dualadapt.agreement import agreeing, head_distances
from fedlab.training import effective_steps, null_progress
from tables import put

START = {"w": torch.zeros(2), "bn.running_mean": torch.zeros(2), "bn.count": torch.tensor(3)}


def limited(changes, examples=None, agreement=None, start=START, means=None, loss=None):
    """Uploads by client, their examples, and notes, of changes of ``w`` from the start."""
    agreement = agreement or Agreement(100.0, ClientConfig())
    messages, replies = [], []
    for node, change in enumerate(changes, start=5):
        with task_identity(1, 1):
            message = Message(
                RecordDict({"arrays": tensor_record(start), "config": ConfigRecord({"server-round": 1})}), node, "train"
            )
        mean = torch.ones(2) if means is None else torch.tensor(means[node - 5])
        state = {**start, "w": start["w"] + torch.tensor(change), "bn.running_mean": mean}
        count = examples[node - 5] if examples else 100
        metrics = MetricRecord({"num-examples": count, "loss": loss[node - 5] if loss else 1.0})
        with task_identity(1, node):
            message.metadata.__dict__["_message_id"] = str(node)
            replies.append(Message(RecordDict({"arrays": tensor_record(state), "metrics": metrics}), reply_to=message))
        messages.append(message)
    used = list(agreement.limited(messages, iter(replies)))
    found = {
        reply.metadata.src_node_id: (
            tensors_of(reply.content["arrays"]),
            reply.content["metrics"]["num-examples" if loss is None else "loss"],
        )
        for reply in used
    }
    return found, agreement.notes


HONEST = [(1.0, 0.0), (1.0, 0.5), (0.8, -0.2), (1.2, 0.1)]


def test_changes_of_one_length_are_passed_on_as_they_came():
    found, notes = limited([(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (-0.6, 0.8)], [100, 20, 100, 100])
    assert notes == {}
    assert list(found) == [5, 6, 7, 8]
    assert [arrays["w"].tolist() for arrays, _ in found.values()] == [
        pytest.approx(change) for change in [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (-0.6, 0.8)]
    ]
    assert [count for _, count in found.values()] == [100, 20, 100, 100]


def test_a_number_of_examples_counts_at_most_as_the_median_and_is_noted_from_twice_on():
    found, notes = limited(HONEST, [100, 120, 80, 10**9])
    assert [count for _, count in found.values()] == [100, 100, 80, 100]
    assert "its 1,000,000,000 examples count as 100, the median" in notes[8]


@pytest.mark.parametrize(
    ("zero", "reported", "counted"),
    [
        (0.0, [1.0, 1.5, 0.8, 1e9], [1.0, 1.5, 0.8, 2.0]),  # the lower median is 1
        (0.0, [1.0, 1.5, 0.8, 0.0], [1.0, 1.5, 0.8, 0.4]),
        (1.0, [0.9, 0.8, 0.95, 0.0], [0.9, 0.8, 0.95, 0.8]),  # weights are 0.1, 0.2, 0.05 and 1
        (1.0, [0.9, 0.9, 0.85, 1.0], [0.9, 0.9, 0.85, 0.95]),
        (0.0, [0.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_a_number_by_which_clients_weigh_is_between_half_and_twice_the_median(zero, reported, counted):
    agreement = Agreement(100.0, ClientConfig(), {"loss": zero})
    found, notes = limited(HONEST, agreement=agreement, loss=reported)
    assert [value for _, value in found.values()] == pytest.approx(counted)
    assert list(notes) == [8] and "its loss of" in notes[8]
    as_they_came, none = limited(HONEST, loss=reported)
    assert [value for _, value in as_they_came.values()] == reported and none == {}


def test_strategies_say_by_which_numbers_clients_weigh():
    def weighed_by(**options):
        config = registry.load_config(
            {"workload": "digits", "server.pretrain_steps": 0, "digits.targets": "usps"}, options
        )
        server = config.plugins["strategy"].spec.server(config.workload, config, null_progress)
        return dict(server.weighed_by())

    labels = {"digits.client_labels": True}
    assert weighed_by(strategy="qfedavg", **labels) == {"start-loss": 0.0}
    assert weighed_by(strategy="fedprox", **{"fedprox.aggregation": "qfedavg"}, **labels) == {"start-loss": 0.0}
    assert weighed_by(strategy="fedavg", **labels) == {} == weighed_by(strategy="semi_fl")
    assert weighed_by(strategy="semi_fl", **{"semi_fl.weights": "threshold"}) == {"threshold": 1.0}


def test_a_change_against_the_others_is_left_out():
    found, notes = limited([*HONEST[:3], (-9.0, 0.0)])
    assert list(found) == [5, 6, 7]
    assert "opposes the others' (mean cosine -0.9" in notes[8]


def test_a_change_that_is_too_long_is_left_out_if_it_points_away_at_all():
    found, notes = limited([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (-5.0, 4.9)])
    assert list(found) == [5, 6, 7] and "mean cosine -0.0" in notes[8]
    found, notes = limited([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (-1.0, 0.98)])
    assert list(found) == [5, 6, 7, 8] and notes == {}


def test_a_change_longer_than_the_median_is_shortened_to_it_and_noted_from_twice_on():
    found, notes = limited([(0.5, 0.0), (1.0, 0.0), (1.5, 0.0), (50.0, 0.0)])
    assert [arrays["w"].tolist() for arrays, _ in found.values()] == [[0.5, 0], [1, 0], [1, 0], [1, 0]]
    assert list(notes) == [8] and "50 times as long as the median" in notes[8]
    assert found[8][0]["bn.count"] == 3


def test_one_of_ten_moves_the_mean_by_a_tenth_of_what_an_honest_client_sends():
    honest = torch.eye(9, 10)
    start = {"w": torch.zeros(10)}
    lie = [0.0] * 9 + [-20.0]  # at right angles to all others, which have no direction in common
    found, notes = limited([*honest.tolist(), lie], start=start, means=[(0.0, 0.0)] * 10)
    assert len(found) == 10 and list(notes) == [14]
    mean = torch.stack([arrays["w"] for arrays, _ in found.values()]).mean(0)
    torch.testing.assert_close(mean, torch.tensor([0.1] * 9 + [-0.1]))


def test_a_client_with_many_steps_is_shortened_to_the_steps_of_the_examples_that_count():
    training = ClientConfig(epochs=1.0, batch_size=10, momentum=0.9)
    steps = [effective_steps(count, 0.9) for count in (1, 2, 2, 10)]
    for lie in (1.0, 8.0):  # a step of the last client is as long as those of others, or eight times
        changes = [(taken, 0.0) for taken in steps[:3]] + [(lie * steps[3], 0.0)]
        found, notes = limited(changes, [10, 20, 20, 100], Agreement(100.0, training))
        assert [count for _, count in found.values()] == [10, 20, 20, 20]
        assert [float(arrays["w"][0]) for arrays, _ in found.values()] == pytest.approx([*steps[:3], steps[2]])
        assert "100 examples count as 20" in notes[8]


def test_a_round_is_limited_without_regard_to_earlier_ones():
    agreement = Agreement(100.0, ClientConfig())
    limited([(9.0, 1.0), (1.0, 9.0), (30.0, 0.0), (-9.0, 9.0)], agreement=agreement)
    again, notes = limited([*HONEST[:3], (50.0, 0.0)], agreement=agreement)  # that of a resumed run is a new one
    fresh, wanted = limited([*HONEST[:3], (50.0, 0.0)])
    assert notes == wanted
    assert all(torch.equal(again[node][0]["w"], fresh[node][0]["w"]) for node in fresh)


def test_statistics_have_a_limit_of_their_own():
    changes = [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (1.0, 0.0)]
    found, notes = limited(changes, means=[(1.0, 0.0), (0.0, 1.0), (0.0, 0.5), (300.0, 400.0)])
    assert float(found[8][0]["bn.running_mean"].norm()) == pytest.approx(1.0)
    assert found[7][0]["bn.running_mean"].tolist() == [0.0, 0.5]
    assert torch.equal(found[8][0]["w"], torch.tensor(changes[3]))
    assert "change of statistics is 500 times as long" in notes[8]


def test_fewer_than_four_and_rounds_without_a_majority_are_left_alone():
    found, notes = limited([(1.0, 0.0), (-50.0, 0.0), (1.0, 0.0)], [1, 1, 10**9])
    assert len(found) == 3 and notes == {}
    found, notes = limited([(1.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (-1.0, 0.0)])
    assert len(found) == 4 and notes == {}


def test_uploads_that_take_too_much_memory_are_passed_on_one_by_one():
    agreement = Agreement(0.0, ClientConfig())
    found, notes = limited([*HONEST[:3], (-9.0, 0.0)], agreement=agreement)
    assert len(found) == 4 and notes == {}


def test_clients_that_do_not_move_agree_with_everybody():
    assert mean_cosines(torch.zeros(3, 3, dtype=torch.float64)) == [0, 0, 0]
    found, notes = limited([(0.0, 0.0)] * 4)
    assert len(found) == 4 and notes == {}


def test_a_head_that_is_far_from_the_global_one_is_not_used():
    head, z = torch.nn.Linear(2, 2), torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
        head.bias.zero_()
    own = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    turned = {"weight": own["weight"].flip(0), "bias": own["bias"]}
    heads = {0: own, 1: own, 2: turned, 3: own}
    distances = head_distances(head, heads, z)
    assert distances[0] == 0 and distances[2] == pytest.approx(2 * (1 - 2 / (1 + torch.e**4)), rel=1e-5)
    used, far = agreeing(heads, distances)
    assert list(used) == [0, 1, 3] and list(far) == [2]
    assert agreeing({0: own, 2: turned}, {0: 0.0, 2: 1.9}) == ({0: own, 2: turned}, {})


@pytest.fixture
def scaffold(tmp_path, monkeypatch):
    """Runs of SCAFFOLD with five clients, the first of which sends its change 50 times as long."""
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    spec = registry.find("strategy", "scaffold").spec

    def train(workload, message, context):
        content = spec.client.train(workload, message, context)
        if context.partition == 0:
            sent, own = tensors_of(message.content["arrays"]), tensors_of(content["arrays"])
            names = [name for name, _ in workload.model().named_parameters()]
            content["arrays"] = tensor_record(shortened(sent, own, names, 50.0))
        return content

    lying = replace(spec, client=replace(spec.client, train=train))

    def run(strategy=lying, **changes):
        put(monkeypatch, "strategy", "scaffold", strategy)
        options = {"blobs.domains": "a,b,c,d,e", "blobs.client_labels": True, "comm.max_update_norm_ratio": 1e6}
        return fedlab.run(
            toy.write_preset(tmp_path), runs=tmp_path, overrides={**options, "strategy": "scaffold", **changes}
        )

    run.honest = partial(run, spec)
    return run


def test_a_client_that_lies_moves_weights_and_control_variates_no_further_than_others(scaffold):
    honest, limited, free = (
        run(rounds=3, **{"server.agreement": agreement}).rounds[-1]["server"]["variate"]
        for run, agreement in [(scaffold.honest, "off"), (scaffold, "limit"), (scaffold, "off")]
    )
    assert limited < 1.5 * honest and free > 5 * honest


def test_a_run_in_which_a_client_is_limited_resumes_to_the_same_bits(scaffold):
    whole, begun = (scaffold(rounds=rounds, **{"server.agreement": "limit"}) for rounds in (3, 1))
    assert "client a: its change is " in (begun.directory / "events.jsonl").read_text()
    assert fedlab.resume(begun.directory, overrides={"rounds": 3}).weights_sha256 == whole.weights_sha256
