"""FedProx beside the same method written as a plain loop with the gradient by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab import registry
from fedlab.errors import ConfigError
from fedlab.seeds import seeded

SEED, ROUNDS, STEPS, BATCH, RATE = 5, 2, 5, 4, 0.05


def plain_loop(matrices, fresh, mu):
    """Li et al., algorithm 2, with momentum 0.9: the global weights (3,)."""
    with seeded(SEED, "initialise"):
        shared = fresh()
    for server_round in range(1, ROUNDS + 1):
        found = []
        for client in range(3):
            x, y = matrices(client)
            w, speed = shared.copy(), np.zeros(3)
            with seeded(SEED, "train", server_round, client):
                for _ in range(STEPS):
                    rows = torch.randint(len(x), (BATCH,)).numpy()
                    fit = 2 / BATCH * x[rows].T @ (x[rows] @ w - y[rows])
                    speed = 0.9 * speed + fit + mu * (w - shared)  # the gradient of mu / 2 ||w - w_t||^2
                    w -= RATE * speed
            found.append((len(x), w))
        shared = sum(count * w for count, w in found) / sum(count for count, _ in found)
    return shared


def test_two_rounds_are_those_of_the_plain_loop(federate, matrices, fresh):
    outcome = federate("fedprox", **{"fedprox.mu": 0.7})
    np.testing.assert_allclose(outcome.weights, plain_loop(matrices, fresh, mu=0.7), rtol=0, atol=1e-6)
    assert np.abs(outcome.weights - plain_loop(matrices, fresh, mu=0.0)).max() > 1e-3  # the term does something


def test_without_its_term_it_is_fedavg_bit_for_bit(federate):
    prox, average = federate("fedprox", **{"fedprox.mu": 0.0}), federate("fedavg")
    assert prox.manifest["weights_sha256"] == average.manifest["weights_sha256"]
    assert [line["clients"] for line in prox.rounds] == [line["clients"] for line in average.rounds]


def test_a_strong_term_holds_clients_at_the_global_model(federate, fresh):
    with seeded(SEED, "initialise"):
        start = fresh()
    free, held = federate("fedavg"), federate("fedprox", **{"fedprox.mu": 15.0})
    assert np.linalg.norm(held.weights - start) < 0.5 * np.linalg.norm(free.weights - start)


def test_it_needs_labeled_clients():
    assert registry.find("strategy", "fedprox").spec.needs_client_labels


def test_a_negative_weight_is_refused(table):
    with pytest.raises(ConfigError, match=r"option 'fedprox.mu'.*got -1.0"):
        table("fedprox", **{"fedprox.mu": -1.0})
