"""A late joiner's first head: the nearest of domains whose true order is known, and what else it may start from."""

from __future__ import annotations

import pytest
import torch

from fedlab.models import em, gaussian_mixture
from fedlab.strategies.dualadapt.onboarding import Choice, choose, rank

NAMES = {0: "usps", 1: "mnist_m", 2: "optdigits", 3: "synthdigits"}
CENTERS = torch.eye(5)[:, :4] * 6  # five classes in four dimensions


def domain(shift, seed):
    """A mixture fitted to a sample of five classes, all of them moved along one axis."""
    generator = torch.Generator().manual_seed(seed)
    centers = CENTERS + torch.tensor([shift, 0.0, 0.0, 0.0])
    x = centers[torch.randint(5, (2000,), generator=generator)] + torch.randn(2000, 4, generator=generator)
    start = gaussian_mixture.GaussianMixture(
        torch.full((5,), 1 / 5).double().log(), centers.double(), torch.ones(5, 4).double()
    )
    return em.fit(x, 5, start=start, steps=10)


def test_known_domains_are_ranked_in_their_true_order():
    known = {0: domain(8.0, 0), 1: domain(1.0, 1), 2: domain(-4.0, 2), 3: domain(2.0, 3)}
    distances = rank(domain(0.0, 4), known)
    assert list(distances) == [1, 3, 2, 0]
    assert list(distances.values()) == pytest.approx(
        [1, 2, 4, 8], abs=0.5
    )  # a translation costs its length; samples differ


def test_of_equally_near_domains_the_lower_partition_comes_first():
    mixture = domain(0.0, 0)
    assert list(rank(mixture, {3: mixture, 1: mixture})) == [1, 3]


def test_nearest_takes_the_first_and_global_and_fresh_nobodys():
    distances = {2: 0.5, 0: 1.5, 1: 2.5}
    assert choose("nearest", 3, distances, seed=0).taken == 2
    assert choose("global", 3, distances, seed=0).taken is None
    assert choose("fresh", 3, distances, seed=0).taken is None
    assert choose("nearest", 3, {}, seed=0).taken is None  # nobody is known yet


def test_random_is_drawn_from_all_that_are_known_by_seed_and_late_joiner():
    distances = {2: 0.5, 0: 1.5, 1: 2.5}
    taken = [choose("random", 3, distances, seed).taken for seed in range(30)]
    assert set(taken) == {0, 1, 2}
    assert taken == [choose("random", 3, distances, seed).taken for seed in range(30)]
    assert taken != [choose("random", 4, distances, seed).taken for seed in range(30)]


def test_the_note_says_it_in_words():
    event = Choice(3, {2: 0.5, 0: 1.25}, 2).event(NAMES)
    assert event["note"] == (
        "synthdigits joined late; distances of its mixture (MW2): optdigits 0.5, usps 1.25; it starts from the head of "
        "optdigits"
    )
    assert event["distances"] == {"optdigits": 0.5, "usps": 1.25}
    assert Choice(3, {2: 0.5}, None).event(NAMES)["start"] == ""
