"""Merging, reduction and distance of mixtures: closed forms, identities and a plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedlab.models.em import fit
from fedlab.models.gaussian_mixture import GaussianMixture, stack
from fedlab.models.mixture_ops import merge, mw2_distance, reduce_components
from mixtures import assert_same, drawn, few, gaussian, mixture_of, overall, seeds


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
    assert mw2_distance(a, b) == pytest.approx(math.sqrt(25 + 4))


def test_distance_by_hand_splits_mass() -> None:
    # 3/4 at 0 and 1/4 at 8 against 1/2 and 1/2: a quarter of the mass moves by 8
    means, ones = torch.tensor([[0.0], [8.0]]).double(), torch.ones(2, 1).double()
    a = GaussianMixture(torch.tensor([0.75, 0.25]).double().log(), means, ones)
    b = GaussianMixture(torch.tensor([0.5, 0.5]).double().log(), means, ones)
    assert mw2_distance(a, b) == pytest.approx(math.sqrt(64 / 4))


@few
@given(seed=seeds)
def test_distance_is_zero_for_itself_symmetric_and_a_triangle(seed: int) -> None:
    a, b, c = mixture_of(seed), mixture_of(seed + 1, components=5), mixture_of(seed + 2)
    assert mw2_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert mw2_distance(a, merge([a, a], [0.3, 0.7])) == pytest.approx(
        0, abs=1e-6
    )  # the same density, written otherwise
    assert mw2_distance(a, b) == pytest.approx(mw2_distance(b, a), rel=1e-6)
    assert mw2_distance(a, c) <= mw2_distance(a, b) + mw2_distance(b, c) + 1e-6
    by = torch.tensor([3.0, 0.0, 4.0, 0.0]).double()
    assert mw2_distance(a, a.translate(by)) == pytest.approx(5)  # a translation costs its length


def test_distance_orders_domains() -> None:
    source = mixture_of(5, components=10, dimensions=16)
    x = drawn(source, 1500)
    fitted = [fit(x + by, 10, start=source.translate(torch.full((16,), by)), steps=5) for by in (0.0, 0.5, 1.0, 4.0)]
    distances = [mw2_distance(fitted[0], other) for other in fitted]
    assert distances == sorted(distances)
    assert distances[3] == pytest.approx(16, rel=0.01)


FAILURES: dict[str, Callable[[], object]] = {
    "got 1 fractions for 2 mixtures": lambda: merge([mixture_of(0), mixture_of(1)], [1.0]),
    "fractions must be positive": lambda: merge([mixture_of(0), mixture_of(1)], [1.0, 0.0]),
    "cannot reduce 3 components to 4": lambda: reduce_components(mixture_of(0), 4),
    "two single mixtures": lambda: mw2_distance(mixture_of(0), mixture_of(0, dimensions=5)),
}


@pytest.mark.parametrize("sentence", FAILURES)
def test_failures_are_sentences(sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FAILURES[sentence]()
