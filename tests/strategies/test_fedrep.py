"""FedRep beside algorithm 1 as a plain loop."""

from __future__ import annotations

import pytest

import plain_loops as plain
from fedlab.errors import ConfigError
from fedlab.runs.client_state import state_at
from fedlab.strategies.fedrep import phases


def plain_loop(start, head_steps, body_steps):
    """The global arrays with the initial head, and each client's head."""
    heads = {}

    def client(partition, model):
        model.load_state_dict(heads.get(partition, {}), strict=False)
        plain.fit(model, partition, head_steps, model.head.parameters())
        state = plain.fit(model, partition, body_steps, model.features.parameters())
        heads[partition] = {name: value for name, value in state.items() if name.startswith("head.")}
        return {name: value for name, value in state.items() if not name.startswith("head.")}

    return plain.federate(start, client), heads


@pytest.mark.parametrize(("ratio", "head", "body"), [(10.0, 4, 1), (1.5, 3, 2), (0.0, 0, 5)])
def test_three_rounds_with_an_absent_client_are_those_of_the_plain_loop(record, tmp_path, ratio, head, body):
    _, directory = record("fedrep", **plain.options(tmp_path, **{"fedrep.head_steps": ratio}))
    arrays, heads = plain_loop(plain.start_of(directory), head, body)
    plain.assert_close(plain.result_of(directory), arrays)
    for partition, own in heads.items():
        plain.assert_close(state_at(directory.checkpoints.path(3), partition)["layers"], own)
        reported = directory.rounds()[-1]["clients"][plain.CLIENTS[partition]]
        assert reported["accuracy_personal"] == pytest.approx(plain.accuracy({**arrays, **own}, partition))


@pytest.mark.parametrize(("steps", "ratio"), [(1, 10.0), (2, 10.0), (7, 3.0), (100, 0.0), (0, 10.0)])
def test_the_representation_always_has_a_step_where_there_is_one(steps, ratio):
    head, body = phases(steps, ratio)
    assert head + body == steps and head >= 0 and (body >= 1 or not steps)


def test_without_steps_nothing_is_trained(record):
    _, directory = record("fedrep", rounds=1, **{"client.steps": 0, "checkpoint.keep": 9})
    plain.assert_close(plain.result_of(directory), plain.start_of(directory))


def test_a_negative_number_of_steps_is_refused(table):
    with pytest.raises(ConfigError, match=r"option 'fedrep.head_steps'"):
        table("fedrep", **{"fedrep.head_steps": -1.0})
