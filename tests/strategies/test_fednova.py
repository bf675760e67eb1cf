"""FedNova beside equation 6, as a plain loop with the gradient by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedlab.seeds import seeded
from fedlab.training import effective_steps

SEED, BATCH, RATE = 5, 4, 0.05


def plain_loop(matrices, fresh, epochs, momentum):
    """Two rounds; the weights a_i of the gradients are added up one by one."""
    with seeded(SEED, "initialise"):
        x = fresh()
    for server_round in (1, 2):
        directions, sums, counts = [], [], []
        for client in range(3):
            data, target = matrices(client)
            steps = math.ceil(epochs * len(data) / BATCH)
            y, speed = x.copy(), np.zeros(3)
            with seeded(SEED, "train", server_round, client):
                for _ in range(steps):
                    rows = torch.randint(len(data), (BATCH,)).numpy()
                    speed = momentum * speed + 2 / BATCH * data[rows].T @ (data[rows] @ y - target[rows])
                    y -= RATE * speed
            a = [sum(momentum**power for power in range(steps - step)) for step in range(steps)]
            directions.append((x - y) / (RATE * sum(a)))
            sums.append(sum(a))
            counts.append(len(data))
        shares = np.array(counts) / sum(counts)
        x = x - RATE * (shares @ sums) * (shares @ np.array(directions))
    return x, shares @ sums


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_two_rounds_are_those_of_the_plain_loop(federate, matrices, fresh, momentum):
    outcome = federate("fednova", **{"client.epochs": 2.0, "client.momentum": momentum})
    x, effective = plain_loop(matrices, fresh, 2.0, momentum)
    np.testing.assert_allclose(outcome.weights, x, rtol=0, atol=2e-6)
    assert outcome.rounds[-1]["server"]["steps"] == pytest.approx(effective)


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.9), (7, 0.5), (4, 0.0)])
def test_effective_steps_are_the_sum_of_the_gradients_weights(steps, momentum):
    assert effective_steps(steps, momentum) == pytest.approx(
        sum(momentum**power for step in range(steps) for power in range(step + 1))
    )


def test_with_equal_steps_it_is_fedavg(federate):
    ours, average = federate("fednova"), federate("fedavg")  # of SMALL's client.steps
    np.testing.assert_allclose(ours.weights, average.weights, rtol=0, atol=1e-6)


def test_with_unequal_steps_it_is_not(federate, matrices, fresh):
    ours = federate("fednova", **{"client.epochs": 2.0})
    with seeded(SEED, "initialise"):
        start = fresh()
    assert np.abs(ours.weights - start).max() > 1e-2
    assert np.abs(ours.weights - federate("fedavg").weights).max() > 1e-3
