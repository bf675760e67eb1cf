"""FedAvg beside the same method written as a plain loop with the gradient by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab import registry
from fedlab.errors import ConfigError, RunError
from fedlab.seeds import seeded

SEED, STEPS, BATCH, RATE = 5, 5, 4, 0.05


def plain_loop(matrices, fresh, rates=(RATE, RATE), decay=0.0):
    """McMahan et al., algorithm 1, with momentum 0.9 and averaged steps: the global weights (3,)."""
    with seeded(SEED, "initialise"):
        shared = fresh()
    for server_round, rate in enumerate(rates, 1):
        total, count = np.zeros(3), 0
        for client in range(3):
            x, y = matrices(client)
            w, speed, average = shared.copy(), np.zeros(3), shared.copy()
            with seeded(SEED, "train", server_round, client):
                for _ in range(STEPS):
                    rows = torch.randint(len(x), (BATCH,)).numpy()
                    gradient = 2 / BATCH * x[rows].T @ (x[rows] @ w - y[rows])
                    speed = 0.9 * speed + gradient
                    w -= rate * speed
                    average = decay * average + (1 - decay) * w
            total, count = total + len(x) * average, count + len(x)
        shared = total / count
    return shared


def test_two_rounds_are_those_of_the_plain_loop(federate, matrices, fresh):
    outcome = federate("fedavg")
    np.testing.assert_allclose(outcome.weights, plain_loop(matrices, fresh), rtol=0, atol=1e-6)


def test_metrics_are_those_of_the_global_model_on_each_clients_test_data(federate, matrices):
    outcome = federate("fedavg")
    last, losses, sizes = outcome.rounds[-1], [], []
    for client, name in enumerate("abc"):
        x, y = matrices(client, "test")
        losses.append(np.mean((x @ outcome.weights - y) ** 2))
        sizes.append(len(y))
        assert last["clients"][name]["loss"] == pytest.approx(losses[-1], rel=1e-5)
        assert last["clients"][name]["num-examples"] == len(y)
    assert len(set(sizes)) == 3
    assert last["mean"] == {"loss": pytest.approx(np.mean(losses), rel=1e-5)}  # a client counts once, however large


def test_pretraining_is_that_of_the_source_trainer(federate):
    pretrained = {"server.pretrain_steps": 12, "rounds": 1}
    average = federate("fedavg", **pretrained, **{"client.steps": 0})
    source = federate("source_only", **pretrained, **{"server.steps": 0})
    np.testing.assert_allclose(average.weights, source.weights, rtol=1e-6)
    assert average.rounds[0]["clients"] == source.rounds[0]["clients"]


def test_a_client_without_labels_says_so(federate):
    assert registry.find("strategy", "fedavg").spec.needs_client_labels
    with pytest.raises(RunError, match="trains on a client's own labels, and this client's training data has none"):
        federate("fedavg", **{"lines.labeled": False})


def test_clients_may_take_adam_with_clipped_gradients(federate, matrices, fresh):
    clip, rate = 0.5, 0.05
    outcome = federate("fedavg", **{"client.optimizer": "adam", "client.max_grad_norm": clip, "rounds": 1})
    with seeded(SEED, "initialise"):
        shared = fresh()
    total, count = np.zeros(3), 0
    for client in range(3):
        x, y = matrices(client)
        w, first, second = shared.copy(), np.zeros(3), np.zeros(3)
        with seeded(SEED, "train", 1, client):
            for step in range(1, STEPS + 1):
                rows = torch.randint(len(x), (BATCH,)).numpy()
                gradient = 2 / BATCH * x[rows].T @ (x[rows] @ w - y[rows])
                gradient = gradient * min(1.0, clip / np.linalg.norm(gradient))
                first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
                w -= rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        total, count = total + len(x) * w, count + len(x)
    np.testing.assert_allclose(outcome.weights, total / count, rtol=0, atol=1e-5)


def test_the_last_round_takes_the_share_of_the_step_that_is_left(federate, matrices, fresh):
    outcome = federate("fedavg", **{"client.final_lr_fraction": 0.2})
    np.testing.assert_allclose(outcome.weights, plain_loop(matrices, fresh, (RATE, 0.2 * RATE)), rtol=0, atol=1e-6)


def test_the_rate_of_each_round_is_the_schedules_and_that_of_clients_trained_at_once(federate, matrices, fresh):
    options = {"client.lr_schedule": "step", "client.lr_step_rounds": 1, "client.lr_step_factor": 0.3}
    options |= {"client.lr_warmup_rounds": 1, "rounds": 3}
    expected = plain_loop(matrices, fresh, (RATE / 2, RATE, 0.3 * RATE))
    for vectorize in ("off", "3"):
        outcome = federate("fedavg", vectorize=vectorize, **options, name=f"by-{vectorize}")
        np.testing.assert_allclose(outcome.weights, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("work", [{}, {"client.epochs": 2.0}])
def test_several_batches_a_step_are_one_large_batch(federate, work):
    large = federate("fedavg", **{"client.batch_size": 12, "name": "large", **work})
    for vectorize in ("off", "3"):
        options = {"client.batch_size": 4, "client.accumulate_steps": 3, "vectorize": vectorize}
        outcome = federate("fedavg", **options, **work, name=f"accumulated-{vectorize}")
        np.testing.assert_allclose(outcome.weights, large.weights, rtol=0, atol=1e-6)
        assert outcome.rounds[-1]["mean"]["loss"] == pytest.approx(large.rounds[-1]["mean"]["loss"], rel=1e-5)


def test_an_averaged_client_sends_the_moving_average_of_its_steps(federate, matrices, fresh):
    outcome = federate("fedavg", **{"client.ema_decay": 0.8})
    np.testing.assert_allclose(outcome.weights, plain_loop(matrices, fresh, decay=0.8), rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", ["scaffold", "fednova"])
@pytest.mark.parametrize(
    "options",
    [
        {"client.optimizer": "adam"},
        {"client.max_grad_norm": 1.0},
        {"client.ema_decay": 0.5},
    ],
)
def test_strategies_that_assume_plain_sgd_refuse_another_optimizer(federate, strategy, options):
    with pytest.raises(ConfigError, match="plain SGD"):
        federate(strategy, **options)
