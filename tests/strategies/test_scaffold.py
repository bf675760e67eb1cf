"""SCAFFOLD beside algorithm 1 with option II, as a plain loop with the gradient by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedlab.config.training_options import ClientConfig
from fedlab.errors import ConfigError
from fedlab.optimizers import SGD
from fedlab.seeds import seeded
from fedlab.strategies.scaffold import step_size
from tables import server_strategy

SEED, STEPS, BATCH, RATE = 5, 5, 4, 0.05


def plain_loop(matrices, fresh, rounds, server_rate=1.0, variates=True, rate=RATE, epochs=0.0, fall=1.0):
    """x (3,) and c (3,) after so many rounds; without variates: the plain mean of plain SGD."""
    with seeded(SEED, "initialise"):
        x = fresh()
    c, own = np.zeros(3), np.zeros((3, 3))
    for server_round in range(1, rounds + 1):
        moved, learned = [], []
        for client in range(3):
            data, target = matrices(client)
            y, steps = x.copy(), math.ceil(epochs * len(data) / BATCH) or STEPS
            with seeded(SEED, "train", server_round, client):
                for _ in range(steps):
                    rows = torch.randint(len(data), (BATCH,)).numpy()
                    gradient = 2 / BATCH * data[rows].T @ (data[rows] @ y - target[rows])
                    y -= rate * (gradient + variates * (c - own[client]))
            after = own[client] - c + (x - y) / (steps * rate)
            moved.append(y - x)
            learned.append(after - own[client])
            own[client] = after
        x, rate = x + server_rate * np.mean(moved, 0), rate * fall
        c = c + np.sum(learned, 0) / 3
    return x, c


@pytest.mark.parametrize("server_rate", [1.0, 0.5])
def test_three_rounds_are_those_of_the_plain_loop(federate, matrices, fresh, server_rate):
    outcome = federate("scaffold", rounds=3, **{"scaffold.learning_rate": server_rate, "client.momentum": 0.0})
    x, c = plain_loop(matrices, fresh, 3, server_rate)
    np.testing.assert_allclose(outcome.weights, x, rtol=0, atol=2e-6)
    assert outcome.rounds[-1]["server"]["variate"] == pytest.approx(np.linalg.norm(c), rel=1e-4)
    without, _ = plain_loop(matrices, fresh, 3, server_rate, variates=False)
    assert np.abs(outcome.weights - without).max() > 1e-3  # the variates do something


def test_variates_are_those_of_the_rounds_learning_rate(federate, matrices, fresh):
    schedule = {"client.lr_schedule": "step", "client.lr_step_rounds": 1, "client.lr_step_factor": 0.5}
    outcome = federate("scaffold", rounds=3, **schedule, **{"client.momentum": 0.0})
    np.testing.assert_allclose(outcome.weights, plain_loop(matrices, fresh, 3, fall=0.5)[0], rtol=0, atol=2e-6)


def test_the_first_round_has_no_variates_and_is_plain_sgd(federate, matrices, fresh):
    outcome = federate("scaffold", rounds=1, **{"client.momentum": 0.0})
    np.testing.assert_allclose(outcome.weights, plain_loop(matrices, fresh, 1, variates=False)[0], rtol=0, atol=1e-6)


@pytest.mark.engine
def test_a_client_uploads_no_more_than_in_fedavg(federate):
    ours, average = federate("scaffold").rounds[-1]["bytes"]["a"], federate("fedavg").rounds[-1]["bytes"]["a"]
    assert ours["train_up"] == average["train_up"]
    assert ours["train_down"] > average["train_down"]


def test_no_local_steps_are_refused(table, lines):
    with pytest.raises(ConfigError, match=r"'client.steps' is 0, and scaffold divides by it"):
        server_strategy(table("scaffold", **{"client.steps": 0}), lines)


def test_a_momentum_that_it_cannot_have_makes_its_steps_larger(federate, matrices, fresh):
    outcome = federate("scaffold", **{"client.momentum": 0.5})
    rate = RATE * sum(0.5**power for step in range(STEPS) for power in range(step + 1)) / STEPS
    x, c = plain_loop(matrices, fresh, 2, rate=rate)
    np.testing.assert_allclose(outcome.weights, x, rtol=0, atol=2e-6)
    assert outcome.rounds[-1]["server"]["variate"] == pytest.approx(np.linalg.norm(c), rel=1e-4)


def test_along_a_constant_gradient_it_moves_as_far_as_sgd_with_momentum():
    training, weight = ClientConfig(learning_rate=0.1, momentum=0.9), torch.ones(1)
    optimizer = SGD([weight], 0.1, 0.9)
    for _ in range(7):
        weight.grad = torch.ones(1)
        optimizer.step()
    assert 1 - weight.item() == pytest.approx(7 * step_size(training, 7), rel=1e-5)
    assert step_size(training, 10_000) == pytest.approx(0.1 / (1 - 0.9), rel=1e-2)


def test_clients_with_passes_take_different_numbers_of_steps(federate, matrices, fresh):
    ours = federate("scaffold", **{"client.epochs": 2.0, "client.momentum": 0.0})
    x, c = plain_loop(matrices, fresh, 2, epochs=2.0)
    np.testing.assert_allclose(ours.weights, x, rtol=0, atol=2e-6)
    assert ours.rounds[-1]["server"]["variate"] == pytest.approx(np.linalg.norm(c), rel=1e-4)
