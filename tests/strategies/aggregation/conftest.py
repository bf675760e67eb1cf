"""Rules on the toy's model (weights, a batch norm, a counter), and made-up models of clients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab import registry
from fedlab.seeds import seeded
from fedlab.strategies import aggregation
from fedlab.strategies.aggregation import ClientUpdate
from tables import put
from toy import SMALL, SPEC, Blobs

COUNTER, VARIANCE = "features.2.num_batches_tracked", "features.2.running_var"


@pytest.fixture
def workload():
    return Blobs(domains="a,b,c,d,e")


@pytest.fixture
def table(monkeypatch):
    """Configuration of a run with one rule; changes that are not options of it are refused."""
    put(monkeypatch, "workload", "blobs", SPEC)

    def make(rule, **changes):
        return registry.load_config({**SMALL, "strategy": rule, "blobs.domains": "a,b,c,d,e"}, changes)

    return make


@pytest.fixture
def make(workload, table):
    def rule(name, **changes):
        return aggregation.make(workload, table(name, **changes))

    return rule


@pytest.fixture
def start(workload):
    with seeded("start"):
        return {name: tensor.clone() for name, tensor in workload.model().state_dict().items()}


@pytest.fixture
def models(start):
    """Models of five clients in one round, with other examples and losses each."""

    def draw(server_round, current=start, size=0.1):
        found = []
        with seeded("models", server_round):
            for client in range(5):
                arrays = {
                    name: tensor + size * torch.randn(tensor.shape)
                    for name, tensor in current.items()
                    if tensor.is_floating_point()
                }
                arrays[VARIANCE] = arrays[VARIANCE].abs()
                arrays[COUNTER] = torch.tensor(10 * server_round + client)
                loss = {"start-loss": 0.5 + client}
                found.append(ClientUpdate({name: arrays[name] for name in current}, 10 * (client + 1), loss))
        return found

    return draw


@pytest.fixture
def rounds(start, models):
    """Three rounds by a rule beside a plain loop's step on each array; ``step(name, w, client weights, ...)``."""

    def run(rule, step, count=3):
        current, history = start, []
        for server_round in range(1, count + 1):
            given = models(server_round, current)
            new = rule.aggregate(current, given, server_round)
            assert {name: (t.dtype, t.shape) for name, t in new.items()} == {
                name: (t.dtype, t.shape) for name, t in current.items()
            }
            assert list(new) == list(current)
            assert new[COUNTER] == 10 * server_round + 4  # the largest
            for name in current:
                if name != COUNTER:
                    stacked = np.stack([one.arrays[name].double().numpy() for one in given])
                    wanted = step(name, current[name].double().numpy(), stacked, server_round)
                    np.testing.assert_allclose(new[name].numpy(), wanted, rtol=0, atol=2e-6, err_msg=name)
            history.append(new)
            current = new
        return history

    return run


def weighted(stacked):
    """The mean weighted by the examples of ``models``."""
    weights = np.arange(1, 6) / 15
    return np.tensordot(weights, stacked, 1)
