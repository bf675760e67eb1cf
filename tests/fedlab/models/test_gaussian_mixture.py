"""Mixtures: hand-checkable numbers, identities, and scikit-learn, SciPy and plain loops as references."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedlab.models.gaussian_mixture import (
    GaussianMixture,
    stack,
)
from mixtures import as_sklearn, assert_same, drawn, few, gaussian, mixture_of, overall, seeds

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
    fitted = GaussianMixture(
        *map(torch.as_tensor, (np.log(reference.weights_), reference.means_, reference.covariances_))
    )
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


FAILURES: dict[str, Callable[[], object]] = {
    "weights must sum to 1, got 2": lambda: broken("log_weights", lambda a: a + math.log(2)),
    "variances must be above 0, the smallest is -1": lambda: broken("variances", lambda a: a.fill_(-1)),
    "the mixture's means hold NaN": lambda: broken("means", lambda a: a.fill_(math.nan)),
    "got .*'log_weights': \\(2,\\)": lambda: broken("log_weights", lambda a: a[:2]),
    "got .*'variances': \\(3, 2\\)": lambda: broken("variances", lambda a: a[:, :2]),
    "missing: log_weights, variances": lambda: GaussianMixture.from_arrays({"means": torch.zeros(1, 1)}),
    "features have 2 dimensions": lambda: mixture_of(0).log_prob(torch.zeros(5, 2)),
    "a single mixture cannot be indexed": lambda: mixture_of(0)[0],
}


@pytest.mark.parametrize("sentence", FAILURES)
def test_failures_are_sentences(sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FAILURES[sentence]()
