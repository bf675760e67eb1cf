"""Source steps in turn with labeled clients, beside the same as a plain loop: Adam, SGD and the average by hand."""

from __future__ import annotations

import numpy as np
import torch

from fedlab.seeds import seeded

SEED, ROUNDS, SOURCE_STEPS, STEPS, RATE, DECAY = 5, 2, 4, 5, 0.05, 0.6


class Adam:
    """Kingma and Ba, algorithm 1."""

    def __init__(self):
        self.first, self.second, self.step = np.zeros(3), np.zeros(3), 0

    def move(self, gradient):
        self.step += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.step), self.second / (1 - 0.999**self.step)
        return RATE * first / (np.sqrt(second) + 1e-8)


def gradient_at(w, x, y, batch):
    rows = torch.randint(len(x), (batch,)).numpy()
    return 2 / batch * x[rows].T @ (x[rows] @ w - y[rows])


def test_two_rounds_are_those_of_the_plain_loop(federate, matrices, fresh):
    with seeded(SEED, "model"):
        last = fresh()
    average, adam = last.copy(), Adam()
    for server_round in range(1, ROUNDS + 1):
        for step in range(SOURCE_STEPS):
            with seeded(SEED, "source", server_round, step):
                last = last - adam.move(gradient_at(last, *matrices(None), 8))
            average = DECAY * average + (1 - DECAY) * last
        total, count = np.zeros(3), 0
        for client in range(3):
            x, y = matrices(client)
            w, speed = average.copy(), np.zeros(3)
            with seeded(SEED, "train", server_round, client):
                for _ in range(STEPS):
                    speed = 0.9 * speed + gradient_at(w, x, y, 4)
                    w = w - RATE * speed
            total, count = total + len(x) * w, count + len(x)
        last = last + total / count - average
        average = total / count
    np.testing.assert_allclose(federate("oracle").weights, average, rtol=0, atol=2e-6)


def test_without_client_steps_it_is_source_only(federate):
    ours, source = federate("oracle", **{"client.steps": 0}), federate("source_only")
    np.testing.assert_allclose(ours.weights, source.weights, rtol=0, atol=2e-6)
