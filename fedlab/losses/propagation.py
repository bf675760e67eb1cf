"""Label propagation: class probabilities smoothed over the graph of nearest neighbors in feature space.

**Source**: Zhou et al., Learning with Local and Global Consistency, NeurIPS 2003: F <- alpha S F + (1 - alpha) Y with
S = D^-1/2 W D^-1/2; the k-nearest-neighbor graph with cubed cosine weights is that of Iscen et al., Label
Propagation for Deep Semi-supervised Learning, CVPR 2019.

**Departures**: (1) Y is not one-hot on labeled rows: every row starts from a classifier's probabilities; (2) a fixed
number of iterations instead of a linear solve.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import normalize

CHUNK_ROWS = 1024  # similarities are computed for so many examples at a time
JOINED_ROWS = 16384  # examples of several small sets that are smoothed at once


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
    (found,) = propagate_many([features], [probabilities], num_neighbors, alpha, iterations)
    return found


@torch.no_grad()
def propagate_many(
    features: Sequence[Tensor],
    probabilities: Sequence[Tensor],
    num_neighbors: int = 10,
    alpha: float = 0.95,
    iterations: int = 40,
) -> list[Tensor]:
    """Return :func:`propagate_labels` of several sets; those of few examples are smoothed together, as one graph.

    No edge joins two sets, so each has the numbers that it has alone.

    Parameters
    ----------
    features, probabilities
        Of each set (examples, dimensions) and (examples, classes); examples and classes of one type and device.
    """
    found = list(probabilities)
    graphs = {
        number: neighbor_graph(rows, k)
        for number, rows in enumerate(features)
        if (k := min(num_neighbors, len(rows) - 1)) > 0
    }
    for some in _together(graphs):
        sizes = [len(probabilities[number]) for number in some]
        weight, column = _joined([graphs[number] for number in some])
        smooth = _smooth(weight, column, torch.cat([probabilities[number] for number in some]), alpha, iterations)
        for number, own in zip(some, torch.split(smooth, sizes), strict=True):
            found[number] = own
    return found


@torch.no_grad()
def neighbor_graph(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return normalized weights and columns (examples, k) of each example's edges to its k nearest by cosine.

    Parameters
    ----------
    features
        (examples, dimensions), with more than k examples.
    """
    count = len(features)
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
    return weight * degree[:, None] * degree[column], column


def _together(graphs: Mapping[int, tuple[Tensor, Tensor]]) -> Iterator[list[int]]:
    """Yield the numbers of graphs of as many edges, in groups of at most ``JOINED_ROWS`` rows, or of one graph."""
    group, rows = list[int](), 0
    for number, (weight, _) in sorted(graphs.items(), key=lambda item: item[1][0].shape[1]):
        alike = group and graphs[group[0]][0].shape[1] == weight.shape[1]
        if group and (not alike or rows + len(weight) > JOINED_ROWS):
            yield group
            group, rows = [], 0
        group.append(number)
        rows += len(weight)
    if group:
        yield group


def _joined(graphs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return several graphs as one, with the rows of one after those of another."""
    starts = accumulate((len(weight) for weight, _ in graphs), initial=0)
    columns = [column + start for (_, column), start in zip(graphs, starts, strict=False)]
    return torch.cat([weight for weight, _ in graphs]), torch.cat(columns)


def _smooth(weight: Tensor, column: Tensor, probabilities: Tensor, alpha: float, iterations: int) -> Tensor:
    """Return probabilities (examples, classes) after some iterations on a graph, rows sum to 1."""
    smooth = probabilities
    for _ in range(iterations):
        outgoing = torch.einsum("nk,nkc->nc", weight, smooth[column])
        incoming = torch.zeros_like(smooth).index_add_(
            0, column.flatten(), (weight[:, :, None] * smooth[:, None]).flatten(0, 1)
        )
        smooth = alpha * (outgoing + incoming) + (1 - alpha) * probabilities
    return smooth / smooth.sum(1, keepdim=True).clamp_min(1e-12)
