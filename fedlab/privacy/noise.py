"""Gaussian noise and samples for differential privacy, from the operating system's entropy or from a named stream.

**Source**: Holohan and Braghin, Secure Random Sampling in Differential Privacy, ESORICS 2021: one Gaussian in floating
point can be told from the value that it was added to by its last bits (Mironov, CCS 2012); a sum of four, over two,
makes that search infeasible.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SUMMANDS = 4
BITS = 53  # of a float64's fraction


def gaussian_noise(shape: Sequence[int], stdv: float, *, secret: bool) -> Tensor:
    """Return independent N(0, stdv^2) noise, float64.

    Parameters
    ----------
    shape
        Shape of the result.
    stdv
        Standard deviation.
    secret
        True: from the operating system, different at every call and unknown to everybody; False: from NumPy's current
        stream (:func:`fedlab.seeds.seeded`), which repeats and protects nobody.
    """
    if not secret:
        return torch.as_tensor(np.random.normal(0.0, stdv, tuple(shape)))
    count = int(np.prod(shape, dtype=np.int64))
    summed = _secret_normals(SUMMANDS * count).reshape(SUMMANDS, count).sum(0) / np.sqrt(SUMMANDS)
    return torch.as_tensor(stdv * summed).reshape(tuple(shape))


def poisson_sample(members: int, rate: float, *, secret: bool) -> Tensor:
    """Return the indices of a sample in which each of ``members`` is with probability ``rate``, independently.

    ``secret`` is as in :func:`gaussian_noise`: whoever knows who was drawn knows more than the account says.
    """
    uniform: NDArray[np.float64]
    if secret:  # nothing from NumPy's stream, whose position would tell the number of members to those with the seed
        raw = np.frombuffer(secrets.token_bytes(8 * members), dtype=np.uint64)
        uniform = (raw >> np.uint64(64 - BITS)).astype(np.float64) * 2.0**-BITS  # in [0, 1)
    else:
        uniform = np.random.random(members)
    return torch.as_tensor(np.flatnonzero(uniform < rate))


def _secret_normals(count: int) -> NDArray[np.float64]:
    """Return standard normals (count,) by the Box-Muller transform of the operating system's random bytes."""
    raw = np.frombuffer(secrets.token_bytes(16 * count), dtype=np.uint64).reshape(2, count)
    uniform = ((raw >> np.uint64(64 - BITS)) + 0.5) * 2.0**-BITS  # in (0, 1)
    radius: NDArray[np.float64] = np.sqrt(-2.0 * np.log(uniform[0]))
    found: NDArray[np.float64] = radius * np.cos(2.0 * np.pi * uniform[1])
    return found
