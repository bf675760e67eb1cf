"""q-FedAvg beside algorithm 2 of its paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toy import Blobs

RATE = 5e-3


LEARNED = [name for name, _ in Blobs().model().named_parameters()]


def norm_of_gradient(start, one):
    """||L (w - w_k)||^2 over what is learned."""
    return sum(((start[name] - one.arrays[name]).double() / RATE).square().sum().item() for name in LEARNED)


@pytest.mark.parametrize("q", [0.0, 0.5, 2.0])
def test_one_round_is_that_of_the_paper(make, start, models, q):
    given, rule = models(1), make("qfedavg", **{"qfedavg.q": q, "qfedavg.lipschitz": 1 / RATE})
    losses = [one.metrics["start-loss"] for one in given]
    steps = [
        q * loss ** (q - 1) * norm_of_gradient(start, one) + loss**q / RATE
        for loss, one in zip(losses, given, strict=True)
    ]
    new = rule.aggregate(start, given, 1)
    for name in LEARNED:
        w = start[name].double().numpy()
        deltas = [
            loss**q * (w - one.arrays[name].double().numpy()) / RATE for loss, one in zip(losses, given, strict=True)
        ]
        np.testing.assert_allclose(new[name].numpy(), w - sum(deltas) / sum(steps), rtol=0, atol=2e-6)
    statistics = sum(one.examples / 150 * one.arrays["features.2.running_mean"].double() for one in given)
    torch.testing.assert_close(new["features.2.running_mean"].double(), statistics, rtol=0, atol=1e-6)


def test_without_q_it_is_the_plain_mean(make, start, models):
    given = models(1)
    new = make("qfedavg", **{"qfedavg.q": 0.0}).aggregate(start, given, 1)
    wanted = torch.stack([one.arrays["head.0.weight"] for one in given]).mean(0)
    torch.testing.assert_close(new["head.0.weight"], wanted, rtol=0, atol=1e-5)


def test_it_asks_for_a_loss_and_doubts_one_below_zero(make):
    rule = make("qfedavg")
    assert rule.client_config() == {"start-loss": True} and rule.expected_metrics == {"start-loss"}
    assert rule.validate_metrics({"start-loss": 0.0}) == ""
    assert "not negative" in rule.validate_metrics({"start-loss": -1.0})


def test_l_is_the_inverse_of_all_local_steps_unless_it_is_set(make):
    local = {"client.steps": 20, "client.learning_rate": 0.02}
    assert make("qfedavg", **local).lipschitz(7) == pytest.approx(0.1 / (20 * 0.02))
    assert make("qfedavg", **local, **{"qfedavg.lipschitz": 50.0}).lipschitz(7) == 50.0
    passes = {"client.epochs": 2.0, "client.batch_size": 4, "client.momentum": 0.5, "client.learning_rate": 0.02}
    assert make("qfedavg", **passes).lipschitz(6) == pytest.approx(0.5 / (3 * 0.02))
