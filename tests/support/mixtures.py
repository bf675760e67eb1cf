"""Mixtures to test with."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor

from fedlab.models.em import kmeans_plusplus_init
from fedlab.models.gaussian_mixture import GaussianMixture

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
    """scikit-learn's mixture that begins where one of ours is."""
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
