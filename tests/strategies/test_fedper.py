"""FedPer beside algorithms 1 and 2 as a plain loop."""

from __future__ import annotations

import pytest
import torch

import plain_loops as plain
from fedlab.errors import ConfigError
from fedlab.runs.client_state import state_at
from tables import server_strategy


def plain_loop(start, layers="head."):
    """The global arrays with the initial head, and each client's own layers."""
    heads = {}

    def client(partition, model):
        model.load_state_dict(heads.get(partition, {}), strict=False)
        state = plain.fit(model, partition)
        heads[partition] = {name: value for name, value in state.items() if name.startswith(layers)}
        return {name: value for name, value in state.items() if not name.startswith(layers)}

    return plain.federate(start, client), heads


@pytest.mark.parametrize(("option", "layers"), [("", "head."), ("head.* features.2.*", ("head.", "features.2."))])
def test_three_rounds_with_an_absent_client_are_those_of_the_plain_loop(record, tmp_path, option, layers):
    _, directory = record("fedper", **plain.options(tmp_path, **{"fedper.layers": option}))
    start, line = plain.start_of(directory), directory.rounds()[-1]["clients"]
    arrays, heads = plain_loop(start, layers)
    plain.assert_close(plain.result_of(directory), arrays)
    for partition, head in heads.items():
        plain.assert_close(state_at(directory.checkpoints.path(3), partition)["layers"], head)
        reported = line[plain.CLIENTS[partition]]
        assert reported["accuracy_personal"] == pytest.approx(plain.accuracy({**arrays, **head}, partition))
        assert reported["accuracy_global"] == pytest.approx(plain.accuracy(arrays, partition))
    assert plain.differ(heads[0], heads[1])
    assert all(torch.equal(arrays[name], start[name]) for name in heads[0])


def test_no_head_is_sent_and_an_absent_client_keeps_its_own(record, tmp_path):
    seen, directory = record("fedper", **plain.options(tmp_path))
    sent = [set(one.answered) for (purpose, *_), one in seen.items() if purpose == "train"]
    assert len(sent) == 8 and not any(name.startswith("head") for names in sent for name in names)
    first, second = (state_at(directory.checkpoints.path(number), 0)["layers"] for number in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "rule", [{}, {"dp_fixed.clip_on": "client"}, {"dp_fixed.clip_on": "server"}, {"fedmedian": ""}, {"qfedavg": ""}]
)
def test_every_kind_of_rule_aggregates_the_shared_layers(record, rule):
    name = next(iter(rule), "fedadam").partition(".")[0]
    changes = {key: value for key, value in rule.items() if "." in key}
    _, directory = record("fedper", rounds=1, **{"checkpoint.keep": 9, "fedper.aggregation": name, **changes})
    start, arrays = plain.start_of(directory), plain.result_of(directory)
    assert not directory.rounds()[-1]["failures"]
    for key in arrays:  # a private rule does not take the counter of batches either
        stays = key.startswith("head") or ("num_batches" in key and name.startswith("dp"))
        assert torch.equal(arrays[key], start[key]) == stays


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("tail.*", r"'fedper.layers': 'tail.\*' names no array of the model, whose arrays begin with bias, weight"),
        ("*", r"'fedper.layers' is '\*' and leaves no array to share"),
        ("", r"fedper needs a model with .features and .head; Linear"),
    ],
)
def test_layers_that_cannot_be_are_refused(table, lines, layers, message):
    with pytest.raises(ConfigError, match=message):
        server_strategy(table("fedper", **{"fedper.layers": layers}), lines)


def test_a_model_without_a_head_can_name_its_layers(federate):
    outcome = federate("fedper", **{"fedper.layers": "bias"})
    assert {"loss_global", "loss_personal"} < outcome.rounds[-1]["clients"]["a"].keys()
