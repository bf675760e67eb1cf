"""A mixture on the wire: sent with the quantiles of its log-likelihood, read, and checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedlab import gmm
from strategies import screening
from strategies.dualadapt.shared import (
    QUANTILES,
    WEIGHTS_OFF,
)


def summary(log_prob: Tensor) -> Tensor:
    """Sorted log-likelihoods that stand in for all of them, at most 256."""
    return gmm.quantiles(log_prob, min(QUANTILES, len(log_prob)))


def upload(mixture: gmm.Mixture, z: Tensor) -> ArrayRecord:
    """A mixture with the quantiles of its log-likelihood on the features (examples, width) that it was fitted to."""
    return ArrayRecord({**mixture.arrays(), "quantiles": summary(mixture.log_prob(z))})


def read_mixture(arrays: Mapping[str, Tensor], device: torch.device) -> tuple[gmm.Mixture, Tensor]:
    """A mixture and the quantiles that came with it."""
    exact = {**arrays, "log_weights": renormalised(arrays["log_weights"])}
    return gmm.Mixture.from_arrays(exact).to(device), arrays["quantiles"].to(device)


def check_mixture(arrays: Mapping[str, Tensor], components: int, width: int | None) -> None:
    """Refuse what is no single mixture of so many components with its quantiles.

    Raises
    ------
    Refused
        For other names, shapes or types, values that are not finite, weights that do not sum to 1 (by more than half
        precision explains), variances that are not positive, or quantiles that are not sorted.
    """
    if arrays.keys() != {"log_weights", "means", "variances", "quantiles"}:
        raise screening.Refused(f"its mixture holds {sorted(arrays)}")
    means, quantiles = arrays["means"], arrays["quantiles"]
    if means.ndim != 2 or len(means) != components or width not in (None, means.shape[-1]):
        raise screening.Refused(f"its mixture's means are {tuple(means.shape)}; expected ({components}, {width})")
    if any(array.dtype != torch.float64 for array in arrays.values()):
        raise screening.Refused(
            f"its mixture is {sorted({str(array.dtype) for array in arrays.values()})}, not float64"
        )
    total = float(arrays["log_weights"].exp().sum()) if arrays["log_weights"].isfinite().all() else float("nan")
    if not abs(total - 1) <= WEIGHTS_OFF:
        raise screening.Refused(f"its mixture's weights sum to {total:g}, not to 1")
    if quantiles.ndim != 1 or not 1 <= len(quantiles) <= QUANTILES or not quantiles.isfinite().all():
        raise screening.Refused("its mixture's quantiles are no list of at most 256 finite numbers")
    if (quantiles.diff() < 0).any():
        raise screening.Refused("its mixture's quantiles are not sorted")
    try:
        read_mixture(arrays, torch.device("cpu"))
    except ValueError as error:
        raise screening.Refused(f"its mixture is none: {error}") from None


def renormalised(log_weights: Tensor) -> Tensor:
    """Log-weights whose exponentials sum to 1, where a coarse wire format left them beside it."""
    total = log_weights.logsumexp(-1, keepdim=True)
    return log_weights if total.abs().max() <= 1e-6 else log_weights - total
