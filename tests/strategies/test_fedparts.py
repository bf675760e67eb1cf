"""FedParts' server beside a plain loop: who sends what, what is averaged over whom, what stays; and bytes."""

from __future__ import annotations

import pytest
import torch

from fedlab.errors import ConfigError
from fedlab.strategies.fedparts import names_of


def test_two_rounds_are_those_of_the_plain_loop(record):
    seen, _ = record("fedparts", **{"fedparts.parts": "features*;head*"})
    shared = {name: array.double() for name, array in seen["train", 1, 0].received["arrays"].items()}
    for server_round in (1, 2):
        answers = [seen["train", server_round, client] for client in range(3)]
        for client, one in enumerate(answers):
            part = ("features", "head")[(server_round + client) % 2]
            assert set(one.answered) == {name for name in shared if name.startswith(part)}
            for name, array in one.received["arrays"].items():
                torch.testing.assert_close(array.double(), shared[name], rtol=0, atol=1e-6)
        for name in shared:
            came = [one for one in answers if name in one.answered]
            assert came
            if "num_batches" in name:
                shared[name] = torch.stack([one.answered[name].double() for one in came]).amax(0)
                continue
            total = sum(one.examples for one in came)
            shared[name] = sum(one.answered[name].double() * one.examples / total for one in came)


def test_uploads_are_counted_and_smaller(federate):
    whole, parts = federate("fedavg"), federate("fedparts", **{"fedparts.parts": "weight;bias"})
    # of three numbers, in round 1 one client sends two and two clients one, in round 2 the other way round
    assert [line["server"]["uploaded"] for line in parts.rounds[1:]] == pytest.approx([4 / 9, 5 / 9])
    up = [sum(one["train_up"] for one in outcome.rounds[1]["bytes"].values()) for outcome in (whole, parts)]
    assert up[1] < up[0]


def test_parts_by_pattern_share_what_no_pattern_names():
    state = {name: torch.zeros(2) for name in ("stem", "down.a", "up.a", "out")}
    assert names_of(state, "down* stem; up*") == [{"stem", "down.a", "out"}, {"up.a", "out"}]
    assert names_of(state, "") == [{"stem", "down.a"}, {"up.a", "out"}]
    assert [len(part) for part in names_of({"a": torch.zeros(9), "b": torch.zeros(1)}, "")] == [1, 1]


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ("features*;heed*", "'heed\\*' names no array of the model, whose arrays begin with features, head"),
        ("features* head*", "one part; write two or more"),
        ("features*; head*;", "has an empty part"),
    ],
)
def test_parts_that_are_none_are_refused(parts, sentence):
    with pytest.raises(ConfigError, match=sentence):
        names_of({"features.a": torch.zeros(1), "head.a": torch.zeros(1)}, parts)


def test_a_model_of_one_array_has_no_parts():
    with pytest.raises(ConfigError, match="this one has 1 arrays"):
        names_of({"a": torch.zeros(9)}, "")
