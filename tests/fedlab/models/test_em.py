"""EM: hand-checkable numbers, identities, and scikit-learn and plain loops as references."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedlab.models.em import (
    blend,
    e_step,
    em_iterations,
    fit,
    kmeans_plusplus_init,
    m_step,
    robbins_monro_step,
)
from fedlab.models.gaussian_mixture import GaussianMixture, stack
from mixtures import as_sklearn, assert_same, drawn, few, gaussian, mixture_of, seeds, started

# --- batch EM ---------------------------------------------------------------------------------------------------------


def blobs() -> Tensor:
    return drawn(mixture_of(11, components=4, dimensions=8), 600)


def overlapping() -> Tensor:
    return drawn(mixture_of(12, components=6, dimensions=3, scale=0.5), 500)


def rectified() -> Tensor:  # features behind a ReLU, some of them always 0
    x = drawn(mixture_of(13, components=3, dimensions=10), 500).clamp_min(0)
    x[:, :2] = 0
    return x


def uneven() -> Tensor:  # scales from 0.01 to 100
    return blobs() * torch.logspace(-2, 2, 8, dtype=torch.float64)


@pytest.mark.parametrize("data", [blobs, overlapping, rectified, uneven])
@pytest.mark.parametrize("floor", [1e-6, 1e-2])
def test_fit_is_scikit_learns_from_the_same_start(data: Callable[[], Tensor], floor: float) -> None:
    x = data()
    start = started(x, 5)
    ours = fit(x, 5, start=start, steps=15, tolerance=0, variance_floor=floor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = as_sklearn(start, floor).fit(x.numpy())
    assert ours.log_prob(x).mean().item() == pytest.approx(theirs.score(x.numpy()), abs=1e-4)
    history = [float(value) for _, value in islice(em_iterations(x, start, variance_floor=floor), 15)]
    assert history == pytest.approx(theirs.lower_bounds_, abs=1e-4)


def test_fit_follows_a_translation_where_plain_moments_would_cancel() -> None:
    x = uneven()
    start = started(x, 5)
    by = torch.full((8,), 1e4, dtype=torch.float64)
    assert_same(fit(x + by, 5, start=start.translate(by)), fit(x, 5, start=start).translate(by), 1e-6)


def test_one_step_is_the_plain_loop() -> None:
    x, start = overlapping()[:40], started(overlapping(), 2)
    stepped, log_likelihood = next(em_iterations(x, start))
    r = start.responsibilities(x)
    for k in range(2):
        mass = sum(r[n, k] for n in range(40))
        mean = sum(r[n, k] * x[n] for n in range(40)) / mass
        variance = sum(r[n, k] * (x[n] - mean) ** 2 for n in range(40)) / mass + 1e-6
        torch.testing.assert_close(stepped.log_weights[k].exp(), mass / 40)
        torch.testing.assert_close(stepped.means[k], mean)
        torch.testing.assert_close(stepped.variances[k], variance)
    torch.testing.assert_close(log_likelihood, start.log_prob(x).mean())


def test_one_component_is_the_sample_mean_and_variance() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    mixture = fit(x, 1)
    assert mixture.means.tolist() == [pytest.approx([2.0, 2.0])]
    assert mixture.variances.tolist() == [pytest.approx([8 / 3 + 1e-6, 2 + 1e-6])]  # the floor is added
    assert mixture.log_weights.tolist() == pytest.approx([0.0])


@few
@given(seed=seeds, components=st.integers(1, 6))
def test_likelihood_never_falls_and_the_mixture_is_one(seed: int, components: int) -> None:
    x = drawn(mixture_of(seed), 120, seed)
    history = []
    for mixture, log_likelihood in islice(em_iterations(x, started(x, components, seed), variance_floor=1e-12), 12):
        mixture.check()
        history.append(log_likelihood.item())
    # The floor is added to every variance, so a component that has collapsed to a point may take back a little.
    assert all(after >= before - 1e-4 for before, after in pairwise(history))


def test_fit_recovers_a_known_mixture() -> None:
    truth = GaussianMixture(
        torch.tensor([0.2, 0.3, 0.5]).log().double(),
        torch.tensor([[-8.0, 0.0], [0.0, 8.0], [8.0, 0.0]]).double(),
        torch.tensor([[1.0, 0.5], [2.0, 1.0], [0.3, 3.0]]).double(),
    )
    x = drawn(truth, 4000)
    found = fit(x, 3, start=started(x, 3))
    order = found.means[:, 0].argsort()
    torch.testing.assert_close(found.log_weights[order].exp(), truth.log_weights.exp(), atol=0.03, rtol=0)
    torch.testing.assert_close(found.means[order], truth.means, atol=0.2, rtol=0)
    torch.testing.assert_close(found.variances[order], truth.variances, atol=0, rtol=0.15)


def test_batched_fit_is_a_loop_of_fits() -> None:
    x = torch.stack([drawn(mixture_of(seed), 100, seed) for seed in range(3)])
    start = stack([started(x[i], 4, i) for i in range(3)])
    together = fit(x, 4, start=start, steps=10, tolerance=0)
    for i in range(3):
        assert_same(together[i], fit(x[i], 4, start=start[i], steps=10, tolerance=0))
    shared = fit(x, 4, start=start[0], steps=10, tolerance=0)  # one start for all
    assert_same(shared[1], fit(x[1], 4, start=start[0], steps=10, tolerance=0))
    assert fit(x, 4).means.shape == (3, 4, 4)


def test_example_weights_are_repetitions_and_zero_is_absence() -> None:
    x, start = overlapping()[:60], started(overlapping(), 3)
    counts = torch.arange(60) % 4
    weighted = fit(x, 3, start=start, steps=8, tolerance=0, weights=counts)
    repeated = fit(x.repeat_interleave(counts, 0), 3, start=start, steps=8, tolerance=0)
    assert_same(weighted, repeated)
    torch.manual_seed(0)
    assert (
        kmeans_plusplus_init(x, 20, weights=(torch.arange(60) < 30).double()).means.unsqueeze(1) - x[30:]
    ).abs().sum(-1).min() > 0


def test_fit_stops_by_tolerance_and_repeats_with_the_stream() -> None:
    x = blobs()
    start = started(x, 4)
    history = [value.item() for _, value in islice(em_iterations(x, start), 100)]
    stop = next(i for i in range(1, 100) if abs(history[i] - history[i - 1]) < 1e-3) + 1
    assert_same(fit(x, 4, start=start), fit(x, 4, start=start, steps=stop, tolerance=0), 0)
    torch.manual_seed(5)
    once = fit(x, 4)
    torch.manual_seed(5)
    assert_same(once, fit(x, 4), 0)


def test_fit_keeps_no_graph() -> None:
    x = blobs().requires_grad_()
    assert not fit(x, 2, steps=2).means.requires_grad


def test_spread_start_takes_examples_as_means_and_covers_separated_clusters() -> None:
    x = torch.cat([1000 * k + torch.rand(20, 2) for k in range(5)])
    start = started(x, 5)
    assert sorted((start.means[:, 0] / 1000).floor().tolist()) == [0, 1, 2, 3, 4]
    assert (torch.cdist(start.means, x.double()).min(-1).values == 0).all()
    assert start.variances.max() < 1  # around the nearest seed, not around the center of all


def test_identical_examples_and_empty_components_stay_finite() -> None:
    same = fit(torch.full((10, 3), 2.0), 4).check()
    torch.testing.assert_close(same.means, torch.full((4, 3), 2.0).double())
    torch.testing.assert_close(same.variances, torch.full((4, 3), 1e-6).double())
    x = blobs()
    start = started(x, 3)
    away = start.means.clone()
    away[0] = 1e4  # no example will ever be its own
    found = fit(x, 3, start=GaussianMixture(start.log_weights, away, start.variances), steps=1).check()
    assert found.log_weights[0] < -30
    torch.testing.assert_close(found.means[0], x.mean(0))
    torch.testing.assert_close(found.variances[0], x.var(0, correction=0) + 1e-6)


def test_full_batch_with_step_size_one_is_one_step_of_em() -> None:
    x = overlapping()
    mixture = started(x, 5)
    running = mixture.statistics()
    for expected, _ in islice(em_iterations(x, mixture), 5):
        running = blend(running, e_step(mixture, x), 1.0)
        mixture = m_step(running)
        assert_same(mixture, expected)


def test_statistics_of_a_mixture_give_it_back_and_those_of_its_samples_approach_them() -> None:
    mixture = mixture_of(4)
    assert_same(m_step(mixture.statistics(), 1e-15), mixture)
    for ours, sampled in zip(mixture.statistics(), e_step(mixture, drawn(mixture, 50_000)), strict=True):
        torch.testing.assert_close(sampled, ours, rtol=0.05, atol=0.05)


def test_update_by_hand_and_schedule() -> None:
    mixture = gaussian([1.0], [1.0])
    halved = blend(mixture.statistics(), e_step(mixture, torch.tensor([[3.0], [5.0]])), 0.5)
    assert [float(value) for value in halved] == pytest.approx([1.0, (1 + 4) / 2, (2 + 17) / 2])
    assert robbins_monro_step(0, 1.0) == 0.5
    assert robbins_monro_step(2, 0.6) == pytest.approx(4**-0.6)


def test_many_mini_batches_approach_the_batch_likelihood() -> None:
    x = drawn(mixture_of(21, components=3, dimensions=4, scale=2.0), 3000)
    start = started(x, 3)
    best = fit(x, 3, start=start, tolerance=1e-6).log_prob(x).mean()
    mixture, running = start, start.statistics()
    stream = torch.Generator().manual_seed(0)
    for step in range(200):
        batch = x[torch.randint(len(x), (64,), generator=stream)]
        running = blend(running, e_step(mixture, batch), robbins_monro_step(step, 0.7))
        mixture = m_step(running)
    gained = (mixture.log_prob(x).mean() - start.log_prob(x).mean()) / (best - start.log_prob(x).mean())
    assert gained > 0.95


x_ok = torch.zeros(5, 4)
FAILURES: dict[str, Callable[[], object]] = {
    "cannot fit 6 components to 5 examples": lambda: fit(x_ok, 6),
    "cannot fit 0 components": lambda: fit(x_ok, 0),
    "start has 3 components where 2": lambda: fit(x_ok, 2, start=mixture_of(0)),
    "at least 1 step, got 0": lambda: fit(x_ok, 2, steps=0),
    "variance floor must be above 0, got 0": lambda: fit(x_ok, 2, start=mixture_of(0, 2), variance_floor=0),
    "variance floor must be above 0, got -1": lambda: m_step(mixture_of(0).statistics(), -1),
    "features hold NaN": lambda: fit(torch.full((5, 2), math.nan), 2),
    "features have 3 dimensions where the mixture has 4": lambda: fit(torch.zeros(5, 3), 3, start=mixture_of(0)),
    "got shape \\(5,\\)": lambda: fit(torch.zeros(5), 2),
    "not empty, got shape \\(0, 4\\)": lambda: e_step(mixture_of(0), torch.zeros(0, 4)),
    "example weights have shape": lambda: fit(x_ok, 2, weights=torch.ones(4)),
    "example weights must be finite": lambda: fit(x_ok, 2, weights=torch.zeros(5)),
    "step size must be in": lambda: blend(mixture_of(0).statistics(), mixture_of(0).statistics(), 0.0),
    "alpha must be in": lambda: robbins_monro_step(0, 0.5),
}


@pytest.mark.parametrize("sentence", FAILURES)
def test_failures_are_sentences(sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FAILURES[sentence]()
