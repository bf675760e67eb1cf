"""Mixtures: hand-checkable numbers, identities, and scikit-learn, SciPy and plain loops as references."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor

from fedlab.models.gaussian_mixture import (
    GaussianMixture,
    distance,
    em_iterations,
    fit,
    m_step,
    merge,
    quantiles,
    reduce_components,
    robbins_monro_step,
    kmeans_plusplus_init,
    stack,
    e_step,
    conformal_p_value,
    blend,
)

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)


def mixture_of(seed: int, components: int = 3, dimensions: int = 4, scale: float = 3.0) -> GaussianMixture:
    stream = torch.Generator().manual_seed(seed)
    return GaussianMixture(
        torch.randn(components, generator=stream, dtype=torch.float64).log_softmax(-1),
        scale * torch.randn(components, dimensions, generator=stream, dtype=torch.float64),
        0.2 + torch.rand(components, dimensions, generator=stream, dtype=torch.float64),
    )


def drawn(mixture: GaussianMixture, count: int, seed: int = 0) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mixture.sample(count)


def started(x: Tensor, components: int, seed: int = 0) -> GaussianMixture:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kmeans_plusplus_init(x, components)


def gaussian(mean: list[float], variance: list[float]) -> GaussianMixture:
    return GaussianMixture(
        torch.zeros(1).double(),
        torch.tensor([mean], dtype=torch.float64),
        torch.tensor([variance], dtype=torch.float64),
    )


def overall(mixture: GaussianMixture) -> tuple[Tensor, Tensor]:
    _, first, second = mixture.statistics()
    mean = first.sum(-2)
    return mean, second.sum(-2) - mean.square()


def assert_same(a: GaussianMixture, b: GaussianMixture, tolerance: float = 1e-9) -> None:
    for name, array in a.arrays().items():
        torch.testing.assert_close(array, b.arrays()[name], rtol=tolerance, atol=tolerance, msg=name)


def as_sklearn(start: GaussianMixture, floor: float = 1e-6, steps: int = 15) -> SklearnMixture:
    return SklearnMixture(
        n_components=start.means.shape[0],
        covariance_type="diag",
        weights_init=start.log_weights.softmax(-1).numpy(),
        means_init=start.means.numpy(),
        precisions_init=start.variances.reciprocal().numpy(),
        reg_covar=floor,
        max_iter=steps,
        tol=0.0,
    )


# --- density ----------------------------------------------------------------------------------------------------------


def test_standard_normal_by_hand() -> None:
    log_prob = gaussian([0.0, 0.0], [1.0, 1.0]).log_prob(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    expected = [-math.log(2 * math.pi), -math.log(2 * math.pi) - 12.5]
    assert log_prob.tolist() == pytest.approx(expected, rel=1e-14)


def test_two_components_by_hand() -> None:
    mixture = GaussianMixture(
        torch.tensor([0.25, 0.75]).log().double(), torch.tensor([[0.0], [2.0]]).double(), torch.ones(2, 1).double()
    )
    peak, apart = 1 / math.sqrt(2 * math.pi), math.exp(-2) / math.sqrt(2 * math.pi)
    assert mixture.log_prob(torch.tensor([[0.0]])).exp().item() == pytest.approx(0.25 * peak + 0.75 * apart)
    share = 0.25 / (0.25 + 0.75 * math.exp(-2))
    assert mixture.responsibilities(torch.tensor([[0.0]]))[0].tolist() == pytest.approx([share, 1 - share])


@few
@given(seed=seeds, offset=st.sampled_from([0.0, 1e3, -1e5]), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_log_prob_is_the_plain_loop_also_far_from_the_origin(seed: int, offset: float, scale: float) -> None:
    base = mixture_of(seed)
    mixture = GaussianMixture(base.log_weights, offset + scale * base.means, scale**2 * base.variances)
    x = offset + scale * drawn(base, 20, seed)
    loop = []
    for row in x:
        terms = []
        for k in range(3):
            mean, variance = mixture.means[k], mixture.variances[k]
            log_density = -0.5 * ((row - mean) ** 2 / variance + (2 * math.pi * variance).log())
            terms.append(mixture.log_weights[k] + log_density.sum())
        loop.append(torch.stack(terms).logsumexp(0))
    torch.testing.assert_close(mixture.log_prob(x), torch.stack(loop), rtol=1e-8, atol=1e-6)


def test_log_prob_is_scikit_learns() -> None:
    mixture = mixture_of(1, components=5, dimensions=16)
    x = drawn(mixture, 300)
    reference = as_sklearn(mixture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.fit(x.numpy())
    fitted = GaussianMixture(*map(torch.as_tensor, (np.log(reference.weights_), reference.means_, reference.covariances_)))
    torch.testing.assert_close(fitted.log_prob(x), torch.as_tensor(reference.score_samples(x.numpy())))
    torch.testing.assert_close(fitted.responsibilities(x), torch.as_tensor(reference.predict_proba(x.numpy())))


def test_log_prob_integrates_to_one() -> None:
    grid = torch.linspace(-40, 40, 8001, dtype=torch.float64).unsqueeze(-1)
    density = mixture_of(3, dimensions=1).log_prob(grid).exp()
    assert torch.trapezoid(density, dx=0.01).item() == pytest.approx(1)


def test_log_prob_has_gradients_and_accepts_float32() -> None:
    x = torch.zeros(2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(gaussian([1.0, 1.0], [1.0, 0.5]).log_prob(x).sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 2.0], [1.0, 2.0]]))


def test_leading_dimensions_are_a_loop_over_them() -> None:
    mixtures = [mixture_of(seed) for seed in range(4)]
    together, x = stack(mixtures), torch.stack([drawn(mixture, 30) for mixture in mixtures])
    torch.testing.assert_close(together.log_prob(x), torch.stack([m.log_prob(x[i]) for i, m in enumerate(mixtures)]))
    torch.testing.assert_close(together.log_prob(x[0]), torch.stack([m.log_prob(x[0]) for m in mixtures]))  # broadcast
    assert_same(together[2], mixtures[2], 0)
    assert together.sample(7).shape == (4, 7, 4)
    assert together.responsibilities(x).shape == (4, 30, 3)


@few
@given(seed=seeds)
def test_samples_have_the_moments_of_the_mixture(seed: int) -> None:
    mixture = mixture_of(seed)
    x = drawn(mixture, 20_000, seed)
    mean, variance = overall(mixture)
    assert ((x.mean(0) - mean).abs() < 6 * (variance / 20_000).sqrt()).all()
    torch.testing.assert_close(x.var(0), variance, rtol=0.15, atol=0)


def test_sampling_repeats_with_the_stream_and_never_takes_a_weight_of_zero() -> None:
    mixture = GaussianMixture(
        torch.tensor([0.0, 1.0, 0.0]).log().double(),
        torch.tensor([[-9.0], [0.0], [9.0]]).double(),
        torch.full((3, 1), 1e-8).double(),
    )
    assert drawn(mixture, 500).abs().max() < 1
    assert torch.equal(drawn(mixture_of(0), 5, seed=1), drawn(mixture_of(0), 5, seed=1))


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
    assert_same(fit(x + by, 5, start=start.shift(by)), fit(x, 5, start=start).shift(by), 1e-6)


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
    assert (kmeans_plusplus_init(x, 20, weights=(torch.arange(60) < 30).double()).means.unsqueeze(1) - x[30:]).abs().sum(
        -1
    ).min() > 0


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


# --- several mixtures -------------------------------------------------------------------------------------------------


@few
@given(seed=seeds, share=st.floats(0.01, 0.99))
def test_merged_density_is_the_shared_sum(seed: int, share: float) -> None:
    a, b = mixture_of(seed), mixture_of(seed + 1, components=2)
    x = torch.cat([drawn(a, 10, seed), drawn(b, 10, seed)])
    expected = share * a.log_prob(x).exp() + (1 - share) * b.log_prob(x).exp()
    merged = merge([a, b], [share, 1 - share]).check()
    torch.testing.assert_close(merged.log_prob(x).exp(), expected)
    assert_same(merge([a, b], [5 * share, 5 - 5 * share]), merged)


@few
@given(seed=seeds, components=st.integers(1, 6))
def test_reducing_keeps_the_overall_moments_exactly(seed: int, components: int) -> None:
    union = merge([mixture_of(seed), mixture_of(seed + 1)], [0.3, 0.7])
    small = merge([mixture_of(seed), mixture_of(seed + 1)], [0.3, 0.7], components).check()
    assert small.means.shape == (components, 4)
    for ours, expected in zip(overall(small), overall(union), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_reduction_is_the_plain_loop_over_pairs() -> None:
    mixture = mixture_of(8, components=6, scale=1.0)
    rows = [
        (w.item(), m, v) for w, m, v in zip(mixture.log_weights.exp(), mixture.means, mixture.variances, strict=True)
    ]

    def join(p: tuple[float, Tensor, Tensor], q: tuple[float, Tensor, Tensor]) -> tuple[float, Tensor, Tensor]:
        weight = p[0] + q[0]
        mean = (p[0] * p[1] + q[0] * q[1]) / weight
        return weight, mean, (p[0] * (p[2] + p[1] ** 2) + q[0] * (q[2] + q[1] ** 2)) / weight - mean**2

    def divergence(p: tuple[float, Tensor, Tensor], q: tuple[float, Tensor, Tensor]) -> float:
        _, mean, variance = join(p, q)
        kl = [((v + (m - mean) ** 2) / variance - 1 - (v / variance).log()).sum() / 2 for _, m, v in (p, q)]
        return float(p[0] * kl[0] + q[0] * kl[1])

    while len(rows) > 2:
        i, j = min(
            ((i, j) for j in range(len(rows)) for i in range(j)), key=lambda ij: divergence(rows[ij[0]], rows[ij[1]])
        )
        rows[i] = join(rows[i], rows[j])
        del rows[j]
    weights, means, variances = zip(*rows, strict=True)
    assert_same(
        reduce_components(mixture, 2),
        GaussianMixture(torch.tensor(weights).double().log(), torch.stack(means), torch.stack(variances)),
        1e-6,
    )


def test_reduction_of_a_stack_is_a_loop_and_twins_become_one() -> None:
    together = stack([mixture_of(seed, components=5) for seed in range(3)])
    for i in range(3):
        assert_same(reduce_components(together, 2)[i], reduce_components(together[i], 2))
    twins = mixture_of(2)
    assert_same(merge([twins, twins], [0.4, 0.6], 3), twins)


def test_distance_between_gaussians_in_closed_form() -> None:
    a, b = gaussian([0.0, 0.0], [1.0, 4.0]), gaussian([3.0, 4.0], [9.0, 4.0])
    assert distance(a, b) == pytest.approx(math.sqrt(25 + 4))


def test_distance_by_hand_splits_mass() -> None:
    # 3/4 at 0 and 1/4 at 8 against 1/2 and 1/2: a quarter of the mass moves by 8
    means, ones = torch.tensor([[0.0], [8.0]]).double(), torch.ones(2, 1).double()
    a = GaussianMixture(torch.tensor([0.75, 0.25]).double().log(), means, ones)
    b = GaussianMixture(torch.tensor([0.5, 0.5]).double().log(), means, ones)
    assert distance(a, b) == pytest.approx(math.sqrt(64 / 4))


@few
@given(seed=seeds)
def test_distance_is_zero_for_itself_symmetric_and_a_triangle(seed: int) -> None:
    a, b, c = mixture_of(seed), mixture_of(seed + 1, components=5), mixture_of(seed + 2)
    assert distance(a, a) == pytest.approx(0, abs=1e-6)
    assert distance(a, merge([a, a], [0.3, 0.7])) == pytest.approx(0, abs=1e-6)  # the same density, written otherwise
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-6)
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-6
    by = torch.tensor([3.0, 0.0, 4.0, 0.0]).double()
    assert distance(a, a.shift(by)) == pytest.approx(5)  # a translation costs its length


def test_distance_orders_domains() -> None:
    source = mixture_of(5, components=10, dimensions=16)
    x = drawn(source, 1500)
    fitted = [
        fit(x + shift, 10, start=source.shift(torch.full((16,), shift)), steps=5) for shift in (0.0, 0.5, 1.0, 4.0)
    ]
    distances = [distance(fitted[0], other) for other in fitted]
    assert distances == sorted(distances)
    assert distances[3] == pytest.approx(16, rel=0.01)


# --- typicality -------------------------------------------------------------------------------------------------------


def test_typicality_by_hand() -> None:
    reference = torch.tensor([-3.0, -1.0, -2.0])
    ranks = conformal_p_value(torch.tensor([-9.0, -3.0, -1.5, 0.0]), reference)
    assert ranks.tolist() == [0.25, 0.5, 0.75, 1.0]


@few
@given(seed=seeds, examples=st.integers(1, 60), data=st.data())
def test_summary_is_within_one_over_its_size(seed: int, examples: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, examples))
    stream = torch.Generator().manual_seed(seed)
    reference = torch.randint(0, 30, (2, examples), generator=stream).double()  # with ties
    values = torch.arange(-1.0, 31.0).expand(2, -1)
    exact = conformal_p_value(values, reference)
    plain = [[(1 + sum(r <= v for r in row)) / (1 + examples) for v in range(-1, 31)] for row in reference.tolist()]
    torch.testing.assert_close(exact, torch.tensor(plain, dtype=torch.float64))
    summary = quantiles(reference, count)
    assert summary.shape == (2, count)
    assert (summary.diff(dim=-1) >= 0).all()
    assert (conformal_p_value(values, summary) - exact).abs().max() <= 1 / count
    assert torch.equal(quantiles(reference, examples), reference.sort(-1).values)


def test_typicality_of_the_same_law_is_uniform_and_of_another_small() -> None:
    mixture = mixture_of(6, dimensions=64)
    reference = mixture.log_prob(drawn(mixture, 2000, seed=1))
    alike = conformal_p_value(mixture.log_prob(drawn(mixture, 2000, seed=2)), reference)
    for share in (0.1, 0.5, 0.9):
        assert (alike <= share).double().mean().item() == pytest.approx(share, abs=0.05)
    other = conformal_p_value(mixture.log_prob(drawn(mixture, 200) + 3), quantiles(reference, 100))
    assert other.max() < 0.05
    assert other.min() > 0


# --- the wire and its failures ----------------------------------------------------------------------------------------


def test_arrays_come_back_as_the_same_bits() -> None:
    mixture = mixture_of(7)
    back = GaussianMixture.from_arrays({**mixture.arrays(), "steps": torch.ones(())})
    assert set(mixture.arrays()) == {"log_weights", "means", "variances"}
    assert_same(back, mixture, 0)
    small = GaussianMixture.from_arrays({name: array.float() for name, array in mixture.arrays().items()})
    assert small.means.dtype == torch.float64
    assert_same(mixture.to("cpu"), mixture, 0)


def broken(name: str, change: Callable[[Tensor], Tensor]) -> GaussianMixture:
    arrays = mixture_of(0).arrays()
    arrays[name] = change(arrays[name].clone())
    return GaussianMixture.from_arrays(arrays)


x_ok = torch.zeros(5, 4)
FAILURES: dict[str, Callable[[], object]] = {
    "weights must sum to 1, got 2": lambda: broken("log_weights", lambda a: a + math.log(2)),
    "variances must be above 0, the smallest is -1": lambda: broken("variances", lambda a: a.fill_(-1)),
    "the mixture's means hold NaN": lambda: broken("means", lambda a: a.fill_(math.nan)),
    "got .*'log_weights': \\(2,\\)": lambda: broken("log_weights", lambda a: a[:2]),
    "got .*'variances': \\(3, 2\\)": lambda: broken("variances", lambda a: a[:, :2]),
    "missing: log_weights, variances": lambda: GaussianMixture.from_arrays({"means": torch.zeros(1, 1)}),
    "cannot fit 6 components to 5 examples": lambda: fit(x_ok, 6),
    "cannot fit 0 components": lambda: fit(x_ok, 0),
    "start has 3 components where 2": lambda: fit(x_ok, 2, start=mixture_of(0)),
    "at least 1 step, got 0": lambda: fit(x_ok, 2, steps=0),
    "variance floor must be above 0, got 0": lambda: fit(x_ok, 2, start=mixture_of(0, 2), variance_floor=0),
    "variance floor must be above 0, got -1": lambda: m_step(mixture_of(0).statistics(), -1),
    "features hold NaN": lambda: fit(torch.full((5, 2), math.nan), 2),
    "features have 3 dimensions where the mixture has 4": lambda: fit(torch.zeros(5, 3), 3, start=mixture_of(0)),
    "features have 2 dimensions": lambda: mixture_of(0).log_prob(torch.zeros(5, 2)),
    "got shape \\(5,\\)": lambda: fit(torch.zeros(5), 2),
    "not empty, got shape \\(0, 4\\)": lambda: e_step(mixture_of(0), torch.zeros(0, 4)),
    "example weights have shape": lambda: fit(x_ok, 2, weights=torch.ones(4)),
    "example weights must be finite": lambda: fit(x_ok, 2, weights=torch.zeros(5)),
    "step size must be in": lambda: blend(mixture_of(0).statistics(), mixture_of(0).statistics(), 0.0),
    "alpha must be in": lambda: robbins_monro_step(0, 0.5),
    "got 1 shares for 2 mixtures": lambda: merge([mixture_of(0), mixture_of(1)], [1.0]),
    "shares must be positive": lambda: merge([mixture_of(0), mixture_of(1)], [1.0, 0.0]),
    "cannot reduce 3 components to 4": lambda: reduce_components(mixture_of(0), 4),
    "two single mixtures": lambda: distance(mixture_of(0), mixture_of(0, dimensions=5)),
    "a single mixture cannot be indexed": lambda: mixture_of(0)[0],
    "a log-likelihood is NaN": lambda: conformal_p_value(torch.tensor([math.nan]), torch.zeros(3)),
    "at least one reference": lambda: conformal_p_value(torch.zeros(3), torch.zeros(0)),
    "cannot summarize 3 log-likelihoods by 4": lambda: quantiles(torch.zeros(3), 4),
}


@pytest.mark.parametrize("sentence", FAILURES)
def test_failures_are_sentences(sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FAILURES[sentence]()
