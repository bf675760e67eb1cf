"""A mixture on the wire: sent with the quantiles of its log-likelihood, read, and checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedlab.models import conformal, gaussian_mixture
from fedlab.strategies import validation
from fedlab.strategies.dualadapt.shared import QUANTILES, WEIGHTS_OFF


def summary(log_prob: Tensor) -> Tensor:
    """Sorted log-likelihoods that stand in for all of them, at most 256."""
    return conformal.quantiles(log_prob, min(QUANTILES, len(log_prob)))


def upload(mixture: gaussian_mixture.GaussianMixture, z: Tensor) -> ArrayRecord:
    """A mixture with the quantiles of its log-likelihood on the features (examples, width) that it was fitted to."""
    return ArrayRecord({**mixture.arrays(), "quantiles": summary(mixture.log_prob(z))})


def read_mixture(arrays: Mapping[str, Tensor], device: torch.device) -> tuple[gaussian_mixture.GaussianMixture, Tensor]:
    """A mixture and the quantiles that came with it."""
    exact = {**arrays, "log_weights": renormalised(arrays["log_weights"])}
    return gaussian_mixture.GaussianMixture.from_arrays(exact).to(device), arrays["quantiles"].to(device)


def check_mixture(arrays: Mapping[str, Tensor], source: Mapping[str, Tensor], limit: float, floor: float) -> None:
    """Refuse what is no single mixture of the source mixture's shape with its quantiles.

    Raises
    ------
    Refused
        For other names, shapes or types, values that are not finite, weights that do not sum to 1 (by more than half
        precision explains), variances that are not positive, quantiles that are not sorted, variances below
        ``floor``, or means and standard deviations beyond ``limit`` times the source's largest.
    """
    if arrays.keys() != {"log_weights", "means", "variances", "quantiles"}:
        raise validation.Refused(f"its mixture holds {sorted(arrays)}")
    means, quantiles = arrays["means"], arrays["quantiles"]
    if means.shape != source["means"].shape:
        raise validation.Refused(
            f"its mixture's means are {tuple(means.shape)}; expected {tuple(source['means'].shape)}"
        )
    if any(array.dtype != torch.float64 for array in arrays.values()):
        raise validation.Refused(
            f"its mixture is {sorted({str(array.dtype) for array in arrays.values()})}, not float64"
        )
    total = float(arrays["log_weights"].exp().sum()) if arrays["log_weights"].isfinite().all() else float("nan")
    if not abs(total - 1) <= WEIGHTS_OFF:
        raise validation.Refused(f"its mixture's weights sum to {total:g}, not to 1")
    if quantiles.ndim != 1 or not 1 <= len(quantiles) <= QUANTILES or not quantiles.isfinite().all():
        raise validation.Refused("its mixture's quantiles are no list of at most 256 finite numbers")
    if (quantiles.diff() < 0).any():
        raise validation.Refused("its mixture's quantiles are not sorted")
    for name, reach in (("means", limit), ("variances", limit**2)):
        if not arrays[name].isfinite().all():
            raise validation.Refused(f"its mixture's {name} hold NaN or infinity")
        largest, usual = float(arrays[name].abs().max()), max(float(source[name].abs().max()), 1.0)
        if largest > reach * usual:
            raise validation.Refused(f"its mixture's {name} reach {largest:.3g}, the source's {usual:.3g}")
    try:
        read_mixture(arrays, torch.device("cpu"))
    except ValueError as error:
        raise validation.Refused(f"its mixture is none: {error}") from None
    if float(arrays["variances"].min()) < 0.9 * floor:  # half precision rounds a little
        raise validation.Refused(f"its mixture's variances fall below the floor of {floor:g}")


def renormalised(log_weights: Tensor) -> Tensor:
    """Log-weights whose exponentials sum to 1, where a coarse wire format left them beside it."""
    total = log_weights.logsumexp(-1, keepdim=True)
    return log_weights if total.abs().max() <= 1e-6 else log_weights - total


def of_one_length(quantiles: Sequence[Tensor]) -> Tensor:
    """Quantiles (mixtures, longest) from lists of several lengths: a client with few examples sends few."""
    longest = max(map(len, quantiles))
    return torch.stack([some[torch.linspace(0, len(some) - 1, longest).round().long()] for some in quantiles])
