"""Label propagation: class probabilities smoothed over the graph of nearest neighbors in feature space.

**Source**: Zhou et al., Learning with Local and Global Consistency, NeurIPS 2003: F <- alpha S F + (1 - alpha) Y with
S = D^-1/2 W D^-1/2; the k-nearest-neighbor graph with cubed cosine weights is that of Iscen et al., Label
Propagation for Deep Semi-supervised Learning, CVPR 2019.

**Departures**: (1) Y is not one-hot on labeled rows: every row starts from a classifier's probabilities; (2) a fixed
number of iterations instead of a linear solve.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

CHUNK_ROWS = 1024  # similarities are computed for so many examples at a time


@torch.no_grad()
def propagate_labels(
    features: Tensor, probabilities: Tensor, num_neighbors: int = 10, alpha: float = 0.95, iterations: int = 40
) -> Tensor:
    """Return ``probabilities`` (examples, classes) smoothed over the graph of ``features`` (examples, dimensions).

    Parameters
    ----------
    num_neighbors
        Edges from each example to its nearest by cosine; at most examples - 1 are used.
    alpha
        Fraction in [0, 1) that comes from neighbors at each iteration.
    iterations
        Number of iterations.

    Returns
    -------
    Tensor
        Probabilities (examples, classes), rows sum to 1.
    """
    count = len(features)
    k = min(num_neighbors, count - 1)
    if k < 1:
        return probabilities
    z = normalize(features.flatten(1), dim=1)
    weights, columns = [], []
    for start in range(0, count, CHUNK_ROWS):
        similarity = z[start : start + CHUNK_ROWS] @ z.T  # (rows, examples)
        rows = torch.arange(len(similarity), device=z.device)
        similarity[rows, start + rows] = -1.0  # no example is its own neighbor
        weight, column = similarity.topk(k, dim=1)
        weights.append(weight.clamp_min(0) ** 3)
        columns.append(column)
    weight, column = torch.cat(weights), torch.cat(columns)  # (examples, k)
    reached = torch.zeros(count, device=z.device).index_add_(0, column.flatten(), weight.flatten())
    degree = (weight.sum(1) + reached).clamp_min(1e-6).rsqrt()
    weight = weight * degree[:, None] * degree[column]
    smooth = probabilities
    for _ in range(iterations):
        outgoing = torch.einsum("nk,nkc->nc", weight, smooth[column])
        incoming = torch.zeros_like(smooth).index_add_(
            0, column.flatten(), (weight[:, :, None] * smooth[:, None]).flatten(0, 1)
        )
        smooth = alpha * (outgoing + incoming) + (1 - alpha) * probabilities
    return smooth / smooth.sum(1, keepdim=True).clamp_min(1e-12)
