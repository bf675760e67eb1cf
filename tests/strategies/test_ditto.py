"""Ditto beside algorithm 1 as a plain loop."""

from __future__ import annotations

from copy import deepcopy

import pytest

import plain_loops as plain
from fedlab.errors import ConfigError
from fedlab.runs.client_state import state_at

LAM = 0.7


def plain_loop(start, lam=LAM):
    """The global arrays, and each client's personal ones."""
    personal = {}

    def client(partition, model):
        w, own = plain.weights_of(model), deepcopy(model)
        own.load_state_dict(personal.get(partition, model.state_dict()))
        state = plain.fit(model, partition)

        def near(model):
            return lam / 2 * sum((v - w[name]).square().sum() for name, v in model.named_parameters())

        personal[partition] = plain.fit(own, partition, penalty=near)
        return state

    return plain.federate(start, client), personal


def test_three_rounds_with_an_absent_client_are_those_of_the_plain_loop(record, tmp_path):
    _, directory = record("ditto", **plain.options(tmp_path, **{"ditto.lam": LAM}))
    start, line = plain.start_of(directory), directory.rounds()[-1]["clients"]
    arrays, personal = plain_loop(start)
    plain.assert_close(plain.result_of(directory), arrays)
    for partition, own in personal.items():
        plain.assert_close(state_at(directory.checkpoints.path(3), partition)["model"], own)
        reported = line[plain.CLIENTS[partition]]
        assert reported["accuracy_personal"] == pytest.approx(plain.accuracy(own, partition))
        assert reported["accuracy_global"] == pytest.approx(plain.accuracy(arrays, partition))
    assert plain.differ(personal[0], plain_loop(start, lam=0.0)[1][0])


def test_the_global_model_is_that_of_fedavg_bit_for_bit(record, tmp_path):
    (ours, ditto), (theirs, average) = (record(name, **plain.options(tmp_path)) for name in ("ditto", "fedavg"))
    assert ditto.manifest()["weights_sha256"] == average.manifest()["weights_sha256"]
    assert [line["mean"].get("accuracy_global") for line in ditto.rounds()] == [
        line["mean"]["accuracy"] for line in average.rounds()
    ]
    assert {name: set(one.answered) for name, one in ours.items()} == {
        name: set(one.answered) for name, one in theirs.items()
    }


def test_before_its_first_round_a_client_has_the_global_model(record, tmp_path):
    _, directory = record("ditto", **plain.options(tmp_path))
    for metrics in directory.rounds()[0]["clients"].values():
        assert metrics["accuracy_personal"] == metrics["accuracy_global"]
        assert metrics["loss_personal"] == metrics["loss_global"]
    later = directory.rounds()[2]["clients"]["a"]  # absent in this round, and tested with its own of round 1
    own = state_at(directory.checkpoints.path(1), 0)["model"]
    assert later["accuracy_personal"] == pytest.approx(plain.accuracy(own, 0))


def test_a_negative_weight_is_refused(table):
    with pytest.raises(ConfigError, match=r"option 'ditto.lam'.*got -1.0"):
        table("ditto", **{"ditto.lam": -1.0})
