"""MOON beside algorithm 1 as a plain loop."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

import plain_loops as plain
from fedlab.errors import ConfigError
from fedlab.runs.client_state import state_at
from fedlab.strategies.moon import ContrastiveWorkload
from tables import server_strategy
from toy import Net

MU, TAU = 2.0, 0.4


def plain_loop(start, mu=MU):
    """The global arrays, and the feature extractor of each client's last training."""
    previous = {}

    def client(partition, model):
        sent, last = deepcopy(model.features).eval(), previous.get(partition)

        def loss(model, x, y):
            z = model.features(x)
            fit = cross_entropy(model.head(z), y)
            if last is None:
                return fit
            near, far = (torch.exp(cosine_similarity(z, other(x).detach()) / TAU) for other in (sent, last))
            return fit - mu * (near / (near + far)).log().mean()

        state = plain.fit(model, partition, loss=loss)
        previous[partition] = deepcopy(model.features).eval()
        return state

    return plain.federate(start, client), previous


def test_three_rounds_with_an_absent_client_are_those_of_the_plain_loop(record, tmp_path):
    _, directory = record("moon", **plain.options(tmp_path, **{"moon.mu": MU, "moon.temperature": TAU}))
    start = plain.start_of(directory)
    arrays, previous = plain_loop(start)
    plain.assert_close(plain.result_of(directory), arrays)
    for partition, features in previous.items():
        plain.assert_close(state_at(directory.checkpoints.path(3), partition)["features"], features.state_dict())
    assert plain.differ(arrays, plain_loop(start, mu=0.0)[0])


def test_without_its_term_it_is_fedavg_bit_for_bit(record, tmp_path):
    hashes = [
        record(name, **plain.options(tmp_path, **changes))[1].manifest()["weights_sha256"]
        for name, changes in (("moon", {"moon.mu": 0.0}), ("fedavg", {}))
    ]
    assert hashes[0] == hashes[1]


def test_an_absent_client_keeps_its_last_model(record, tmp_path):
    _, directory = record("moon", **plain.options(tmp_path))
    first, second = (state_at(directory.checkpoints.path(number), 0)["features"] for number in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_without_features_is_refused(table, lines):
    with pytest.raises(ConfigError, match=r"moon needs a model with .features and .head; Linear"):
        server_strategy(table("moon"), lines)


def test_a_loss_that_computes_no_features_is_refused():
    class Elsewhere:
        def loss(self, model, batch):
            return model.head(batch["x"]).sum()

    model = Net()
    contrastive = ContrastiveWorkload(Elsewhere(), model.features, model.features, 1.0, 0.5)
    with pytest.raises(ConfigError, match=r"does not call the model's .features"):
        contrastive.loss(model, {"x": torch.zeros(2, 8)})
