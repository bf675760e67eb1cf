"""Source only beside the same method as a plain loop: Adam, the one cycle and the average by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

from fedlab.errors import ConfigError
from fedlab.seeds import seeded
from fedlab.strategies.protocol import ClientContext
from tables import client_functions, server_strategy

SEED, ROUNDS, STEPS, BATCH, RATE, DECAY = 5, 2, 4, 8, 0.05, 0.6


class Adam:
    """Kingma and Ba, algorithm 1."""

    def __init__(self):
        self.first, self.second, self.step = np.zeros(3), np.zeros(3), 0

    def move(self, gradient, rate, beta=0.9):
        self.step += 1
        self.first = beta * self.first + (1 - beta) * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - beta**self.step), self.second / (1 - 0.999**self.step)
        return rate * first / (np.sqrt(second) + 1e-8)


def source_step(matrices, w, server_round, *numbers):
    """Loss and gradient on the batches of one step."""
    (x, y), drawn = matrices(None), []
    for number in numbers:
        with seeded(SEED, "source", server_round, number):
            drawn.append(torch.randint(len(x), (BATCH,)).numpy())
    rows = np.concatenate(drawn)
    error = x[rows] @ w - y[rows]
    return np.mean(error**2), 2 / len(rows) * x[rows].T @ error


def one_cycle(step, steps):
    """Rate and beta of Smith's one cycle: a cosine up over the first tenth, then one down to a 250th."""

    def cosine(start, end, share):
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    turn = 0.1 * steps - 1
    if step <= turn:
        return cosine(RATE / 25, RATE, step / turn), cosine(0.95, 0.85, step / turn)
    share = (step - turn) / (steps - 1 - turn)
    return cosine(RATE, RATE / 250, share), cosine(0.85, 0.95, share)


@pytest.mark.parametrize(("batches", "decay"), [(1, 0.0), (3, 0.0), (1, 0.3)])
def test_two_rounds_are_those_of_the_plain_loop(federate, matrices, fresh, batches, decay):
    with seeded(SEED, "model"):
        w = fresh()
    average, adam, losses = w.copy(), Adam(), []
    for server_round in range(1, ROUNDS + 1):
        for step in range(STEPS):
            loss, gradient = source_step(matrices, w, server_round, *range(batches * step, batches * step + batches))
            w = w - adam.move(gradient + decay * w, RATE)
            average = DECAY * average + (1 - DECAY) * w
            losses.append(loss)
    outcome = federate("source_only", **{"server.accumulate_steps": batches, "server.weight_decay": decay})
    np.testing.assert_allclose(outcome.weights, average, rtol=0, atol=1e-6)
    assert outcome.rounds[2]["server"] == {"loss": pytest.approx(np.mean(losses[STEPS:]), rel=1e-5)}


@pytest.mark.parametrize("steps", [11, 20, 37])
def test_pretraining_is_one_cycle_of_adam_and_the_average_starts_behind_it(federate, matrices, fresh, steps):
    with seeded(SEED, "model"):
        w = fresh()
    adam = Adam()
    for step in range(steps):
        w = w - adam.move(source_step(matrices, w, 0, step)[1], *one_cycle(step, steps))
    outcome = federate("source_only", rounds=1, **{"server.pretrain_steps": steps, "server.steps": 0})
    np.testing.assert_allclose(outcome.weights, w, rtol=0, atol=2e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10])
def test_a_short_pretraining_learns_too(table, lines, steps):
    trainer = server_strategy(table("source_only", **{"server.pretrain_steps": steps}), lines).trainer
    before = trainer.model.weight.detach().clone()
    assert math.isfinite(trainer.pretrain())
    assert torch.isfinite(trainer.average.weight).all()
    assert not torch.equal(trainer.average.weight, before)


def test_no_client_is_asked_to_train_and_all_test(federate, table):
    for line in federate("source_only").rounds:
        assert list(line["clients"]) == ["a", "b", "c"]
        for moved in line["bytes"].values():
            assert (moved["train_down"], moved["train_up"]) == (0, 0)
            assert moved["evaluate_down"] > moved["evaluate_up"] > 0
    with pytest.raises(ConfigError, match="source_only does not train on clients"):
        client_functions("source_only").train(None, None, ClientContext(0, table("source_only")))


def test_clients_need_no_labels_and_change_nothing(federate):
    with_labels, without = federate("source_only"), federate("source_only", **{"lines.labeled": False})
    assert with_labels.manifest["weights_sha256"] == without.manifest["weights_sha256"]


def test_the_batches_of_a_round_do_not_depend_on_what_was_drawn_before(table, lines):
    trainer = server_strategy(table("source_only"), lines).trainer
    torch.manual_seed(0)
    first = trainer.batch_at(1, 2)["x"]
    assert torch.equal(trainer.batch_at(1, 2)["x"], first)
    assert not torch.equal(trainer.batch_at(1, 3)["x"], first)
    assert not torch.equal(trainer.batch_at(2, 2)["x"], first)


def test_a_server_without_labels_is_refused(table, lines):
    with pytest.raises(ConfigError, match="'source_only' trains on labeled source data.*workload 'lines' has no lab"):
        server_strategy(table("source_only"), type(lines)(teacher=False))


def test_progress_is_told_by_phase(table, lines):
    told = []
    strategy = server_strategy(
        table("source_only", **{"server.pretrain_steps": 2}), lines, lambda *news: told.append(news)
    )
    strategy.initialize()
    strategy.configure_train(1, None, ConfigRecord(), None)
    assert told[:2] == [("pretrain", 1, 2), ("pretrain", 2, 2)]
    assert told[2:] == [("source", step, STEPS) for step in range(1, STEPS + 1)]
