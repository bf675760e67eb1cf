"""Mixtures in messages: sent with the quantiles of their log-likelihood, decoded, and validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedlab.comm.tensors import tensor_record
from fedlab.models import conformal, gaussian_mixture
from fedlab.strategies import validation
from fedlab.strategies.dualadapt.shared import QUANTILES, WEIGHTS_TOLERANCE


def summary(log_prob: Tensor) -> Tensor:
    """Return at most 256 quantiles (quantiles,), sorted, of log-likelihoods (examples,)."""
    return conformal.quantiles(log_prob, min(QUANTILES, len(log_prob)))


def upload(mixture: gaussian_mixture.GaussianMixture, z: Tensor) -> ArrayRecord:
    """Return a mixture with the quantiles of its log-likelihood on z (examples, width), which it was fitted to."""
    return tensor_record({**mixture.arrays(), "quantiles": summary(mixture.log_prob(z))})


def read_mixture(arrays: Mapping[str, Tensor], device: torch.device) -> tuple[gaussian_mixture.GaussianMixture, Tensor]:
    """Return the mixture of a message and its quantiles (quantiles,)."""
    exact = {**arrays, "log_weights": renormalized(arrays["log_weights"])}
    return gaussian_mixture.GaussianMixture.from_arrays(exact).to(device), arrays["quantiles"].to(device)


def example_weights(state: Mapping[str, Any], partition: int, features: Tensor) -> Tensor | None:
    """Return the typicality (rows,) of features (rows, width) under a client's mixture, from the strategy's state.

    None where the client has sent no mixture, or one of features of another width.
    """
    arrays = state["mixtures"].get(partition)
    if arrays is None or arrays["means"].shape[-1] != features.shape[1]:
        return None
    mixture, quantiles = read_mixture({name: array.double() for name, array in arrays.items()}, torch.device("cpu"))
    return conformal.conformal_p_value(mixture.log_prob(features), quantiles)


MIXTURE_REACH = 10
"""Factor on the largest norm ratio of updates, for the reach of a mixture: that of one image is honestly far."""


def check_mixture(arrays: Mapping[str, Tensor], source: Mapping[str, Tensor], limit: float, floor: float) -> None:
    """Validate one mixture of the source mixture's shape, with quantiles.

    Raises
    ------
    InvalidUpdate
        For other names, shapes or types, values that are not finite, weights that do not sum to 1 (by more than half
        precision explains), variances that are not positive, quantiles that are not sorted, variances below
        ``floor``, or means and standard deviations beyond ``limit`` times the source's largest.
    """
    if arrays.keys() != {"log_weights", "means", "variances", "quantiles"}:
        raise validation.InvalidUpdate(f"its mixture holds {sorted(arrays)}")
    means, quantiles = arrays["means"], arrays["quantiles"]
    if means.shape != source["means"].shape:
        raise validation.InvalidUpdate(
            f"its mixture's means are {tuple(means.shape)}; expected {tuple(source['means'].shape)}"
        )
    if any(array.dtype != torch.float64 for array in arrays.values()):
        raise validation.InvalidUpdate(
            f"its mixture is {sorted({str(array.dtype) for array in arrays.values()})}, not float64"
        )
    total = float(arrays["log_weights"].exp().sum()) if arrays["log_weights"].isfinite().all() else float("nan")
    if not abs(total - 1) <= WEIGHTS_TOLERANCE:
        raise validation.InvalidUpdate(f"its mixture's weights sum to {total:g}, not to 1")
    if quantiles.ndim != 1 or not 1 <= len(quantiles) <= QUANTILES or not quantiles.isfinite().all():
        raise validation.InvalidUpdate("its mixture's quantiles are not a list of at most 256 finite numbers")
    if (quantiles.diff() < 0).any():
        raise validation.InvalidUpdate("its mixture's quantiles are not sorted")
    for name, reach in (("means", limit), ("variances", limit**2)):
        if not arrays[name].isfinite().all():
            raise validation.InvalidUpdate(f"its mixture's {name} hold NaN or infinity")
        largest, usual = float(arrays[name].abs().max()), max(float(source[name].abs().max()), 1.0)
        if largest > reach * usual:
            raise validation.InvalidUpdate(f"its mixture's {name} reach {largest:.3g}, the source's {usual:.3g}")
    try:
        read_mixture(arrays, torch.device("cpu"))
    except ValueError as error:
        raise validation.InvalidUpdate(f"its mixture is invalid: {error}") from None
    if float(arrays["variances"].min()) < 0.9 * floor:  # half precision rounds a little
        raise validation.InvalidUpdate(f"its mixture's variances fall below the floor of {floor:g}")


def renormalized(log_weights: Tensor) -> Tensor:
    """Return log-weights (..., components) whose exponentials sum to 1, which compression may have changed."""
    total = log_weights.logsumexp(-1, keepdim=True)
    return log_weights if total.abs().max() <= 1e-6 else log_weights - total


def pad_quantiles(quantiles: Sequence[Tensor]) -> Tensor:
    """Return quantiles (mixtures, longest) from sequences of different lengths; small clients send fewer."""
    longest = max(map(len, quantiles))
    return torch.stack([one[torch.linspace(0, len(one) - 1, longest).round().long()] for one in quantiles])
