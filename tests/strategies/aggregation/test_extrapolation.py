"""FedExP beside equation 7 as a plain loop, and a federation with an absent client."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from toy import Blobs

EPSILON = 0.01
WEIGHTS = np.arange(1, 6) / 15


def trainable():
    return [name for name, _ in Blobs().model().named_parameters()]


def extrapolation(current, updates, epsilon):
    """Equation 7 over all weights, with clients weighted by examples."""
    changes = [
        np.concatenate([(current[name] - one.arrays[name]).double().numpy().ravel() for name in trainable()])
        for one in updates
    ]
    squares = sum(weight * change @ change for weight, change in zip(WEIGHTS, changes, strict=True))
    mean = sum(weight * change for weight, change in zip(WEIGHTS, changes, strict=True))
    return max(1.0, squares / (2 * (mean @ mean + epsilon)))


def test_a_round_is_that_of_the_plain_loop(make, start, models):
    rule, updates = make("fedexp", **{"fedexp.epsilon": EPSILON}), models(1)
    eta = extrapolation(start, updates, EPSILON)
    assert eta > 1.1
    new = rule.aggregate(start, updates, 1)
    assert rule.metrics()["extrapolation"] == pytest.approx(eta, rel=1e-5)
    for name, tensor in start.items():
        if tensor.is_floating_point():
            mean = sum(w * one.arrays[name].double() for w, one in zip(WEIGHTS, updates, strict=True))
            wanted = tensor + (eta if name in trainable() else 1.0) * (mean - tensor)
            torch.testing.assert_close(new[name].double(), wanted, rtol=1e-5, atol=1e-6)


def test_equal_changes_or_a_large_epsilon_give_fedavg_bit_for_bit(make, start, models):
    updates = models(1)
    same = [replace(updates[0], examples=one.examples) for one in updates]
    for given, options in ((same, {}), (updates, {"fedexp.epsilon": 1e6})):
        rule = make("fedexp", **options)
        new, mean = rule.aggregate(start, given, 1), make("fedavg").aggregate(start, given, 1)
        assert rule.metrics() == {"extrapolation": 1.0}
        assert all(torch.equal(new[name], mean[name]) for name in mean)


def test_nothing_is_reported_before_the_first_round(make):
    assert make("fedexp").metrics() == {}
