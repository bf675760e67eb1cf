"""Label propagation by hand, and against the dense matrices of the paper in a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedlab.losses import propagation
from fedlab.losses.propagation import propagate_labels, propagate_many


def dense(features, probabilities, num_neighbors, alpha, iterations):
    """F <- alpha S F + (1 - alpha) Y with S = D^-1/2 W D^-1/2, every matrix written out."""
    features, start = np.asarray(features, float), np.asarray(probabilities, float)
    count = len(features)
    a = np.zeros((count, count))
    for i in range(count):
        cosines = [
            -2 if i == j else features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j])
            for j in range(count)
        ]
        for j in np.argsort(cosines)[::-1][: min(num_neighbors, count - 1)]:
            a[i, j] = max(cosines[j], 0) ** 3
    w = a + a.T
    degree = np.maximum(w.sum(1), 1e-6)
    s = w / np.sqrt(np.outer(degree, degree))
    f = start
    for _ in range(iterations):
        f = alpha * s @ f + (1 - alpha) * start
    return f / f.sum(1, keepdims=True)


def random_case(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 5, generator=generator)
    return features, torch.randn(count, 3, generator=generator).mul(2).softmax(1)


@pytest.mark.parametrize(
    ("count", "num_neighbors", "alpha", "iterations"),
    [(12, 3, 0.95, 40), (12, 3, 0.5, 1), (20, 1, 0.9, 7), (5, 4, 0.8, 3), (5, 100, 0.8, 3), (2, 10, 0.95, 40)],
)
def test_as_the_dense_matrices(count, num_neighbors, alpha, iterations):
    features, p = random_case(count)
    if count == 2:
        features = features.abs()  # two examples that look away from each other have no edge
    found = propagate_labels(features, p, num_neighbors, alpha, iterations)
    np.testing.assert_allclose(
        found.numpy(), dense(features, p, num_neighbors, alpha, iterations), rtol=2e-4, atol=1e-6
    )


@pytest.mark.parametrize("joined", [propagation.JOINED_ROWS, 20])
def test_sets_that_are_smoothed_together_have_the_numbers_that_they_have_alone(monkeypatch, joined):
    cases = [random_case(count, seed) for seed, count in enumerate((12, 1, 4, 30, 9, 12))]
    alone = [propagate_labels(features, p, 5) for features, p in cases]
    monkeypatch.setattr(propagation, "JOINED_ROWS", joined)
    for found, expected in zip(propagate_many(*zip(*cases, strict=True), 5), alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_blocks_of_rows_change_nothing(monkeypatch):
    features, p = random_case(23)
    whole = propagate_labels(features, p, 4)
    monkeypatch.setattr(propagation, "CHUNK_ROWS", 5)
    torch.testing.assert_close(propagate_labels(features, p, 4), whole)


def test_two_equal_examples_by_hand():
    """One edge of S = 1: F1 <- a F2 + (1 - a) Y1, whose fixed point is F1 = (Y1 + a Y2) / (1 + a)."""
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = propagate_labels(features, p, alpha=0.5, iterations=60)
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 1 / 3], [1 / 3, 2 / 3]]))


def test_one_iteration_by_hand():
    """A path: b is the neighbor of a and c at 45 degrees, so w = cos^3; S = 1/sqrt(2) between b and its ends."""
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    found = propagate_labels(features, p, num_neighbors=2, alpha=0.5, iterations=1)
    one, half = math.sqrt(0.5) * 0.5, 0.5  # what b sends to a for each class; what a keeps
    expected = torch.tensor([half * one + half * 1.0, half * one])
    torch.testing.assert_close(found[0], expected / expected.sum())
    torch.testing.assert_close(found[2], found[0].flip(0))
    torch.testing.assert_close(found[1], torch.tensor([0.5, 0.5]))


def test_rows_sum_to_one_and_nothing_is_negative():
    features, p = random_case(40)
    found = propagate_labels(features, p)
    torch.testing.assert_close(found.sum(1), torch.ones(40))
    assert (found >= 0).all()


def test_a_cluster_outvotes_its_odd_member():
    generator = torch.Generator().manual_seed(0)
    centers = torch.eye(8)[:2].repeat_interleave(10, 0)
    features = centers + 0.05 * torch.randn(20, 8, generator=generator)
    p = torch.tensor([[0.9, 0.1]] * 10 + [[0.1, 0.9]] * 10)
    p[0] = torch.tensor([0.2, 0.8])
    assert propagate_labels(features, p, num_neighbors=5).argmax(1).tolist() == [0] * 10 + [1] * 10
    assert p.argmax(1)[0] == 1


def test_an_example_without_neighbors_keeps_its_own():
    features = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [-1.0, 0.0, 0.0]])  # the last looks away from both
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    torch.testing.assert_close(propagate_labels(features, p, num_neighbors=2)[2], p[2])


def test_a_single_example_keeps_its_own():
    p = torch.tensor([[0.2, 0.8]])
    assert torch.equal(propagate_labels(torch.randn(1, 4), p), p)


def test_images_of_features_and_zero_features_are_taken():
    features, p = random_case(6)
    features[2] = 0.0
    flat = propagate_labels(features, p)
    assert torch.isfinite(flat).all()
    torch.testing.assert_close(flat[2], p[2])
    torch.testing.assert_close(propagate_labels(features.reshape(6, 5, 1, 1), p), flat)


def test_inputs_are_left_as_they_are_and_no_gradient_is_kept():
    features, p = random_case(6)
    copies = features.clone(), p.clone()
    assert not propagate_labels(features.requires_grad_(), p).requires_grad
    assert torch.equal(features, copies[0]) and torch.equal(p, copies[1])
