"""Scores of images against scipy, brute force over pairs, and cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from fedlab.evaluation import image_quality


def clouds(count=40, shift=0.0, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator) @ torch.randn(5, 5, generator=generator) + shift


def test_the_distance_is_that_of_scipys_matrix_root():
    a, b = clouds().numpy(), clouds(50, 0.7, seed=4).numpy()
    s_a, s_b = (np.cov(x.astype(np.float64), rowvar=False) for x in (a, b))
    gap = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    wanted = gap @ gap + np.trace(s_a + s_b - 2 * sqrtm(s_a @ s_b).real)
    assert image_quality.distribution_metrics(torch.from_numpy(a), torch.from_numpy(b))["frechet"] == pytest.approx(
        wanted, rel=1e-5
    )


def test_precision_and_recall_are_those_of_a_loop_over_pairs():
    drawn, real = clouds(30), clouds(35, 0.9, seed=4)

    def reached(points, around):
        inside = 0
        for point in points:
            for number, center in enumerate(around):
                others = sorted(float((center - x).norm()) for n, x in enumerate(around) if n != number)
                if float((point - center).norm()) <= others[2]:
                    inside += 1
                    break
        return inside / len(points)

    found = image_quality.distribution_metrics(drawn, real)
    assert found["precision"] == pytest.approx(reached(drawn, real))
    assert found["recall"] == pytest.approx(reached(real, drawn))
    assert 0 < found["recall"] < 1


def test_copies_are_perfect_and_one_mode_is_precise_but_recalls_little():
    real = torch.cat([clouds(40), clouds(40, 50.0, seed=5)])
    assert image_quality.distribution_metrics(real, real) == {
        "frechet": pytest.approx(0, abs=1e-8),
        "precision": 1.0,
        "recall": 1.0,
    }
    found = image_quality.distribution_metrics(clouds(80), real)
    assert found["precision"] > 0.6
    assert found["recall"] <= 0.5


def test_label_distances_by_hand():
    found = image_quality.label_distances(torch.tensor([0, 0, 0, 1]), np.array([0.5, 0.5]))
    assert found["label_distance"] == pytest.approx(0.25)
    assert found["label_kl"] == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    unheld = image_quality.label_distances(torch.tensor([0, 2]), np.array([1.0, 0.0, 0.0]))
    assert unheld["label_distance"] == 0.5
    assert unheld["label_kl"] == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 0.25))


def test_too_few_images_for_their_neighbors_are_refused():
    with pytest.raises(ValueError, match="3 images have no 3 neighbors each"):
        image_quality.knn_radii(torch.zeros(3, 2))
