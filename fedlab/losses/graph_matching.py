"""Matching of decoded places to atoms: the order of the atoms under which a graph costs least.

The cost of a graph in the order pi (place i holds atom pi(i)) under independent log-probabilities is

    c(pi) = -sum_i log p_i(x_pi(i)) - sum_{i<k} log p_ik(a_pi(i)pi(k)),    pairs with an absent atom costing nothing

Its minimum is a quadratic assignment problem, approximated here in two steps. A linear assignment (scipy's) pairs
places and atoms as if every bond of a place had the mean of its bonds' probabilities. Then, from that order or the
given one, whichever costs less, the swap of two atoms that saves most is made, until none saves or ``MAX_SWAPS`` were
made. So the result is never above the cost in the given order; it need not be the minimum, and the test compares with
all orders of small graphs.

**Source**: Simonovsky and Komodakis, GraphVAE, 2018, section 3.4, match nodes to score a reconstruction.
**Departures**: (1) they match by max-pooling and the Hungarian algorithm, whose result is not improved further.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SWAPS = 12


@torch.no_grad()
def match_nodes(bonds: Tensor, atoms: Tensor, adjacency: Tensor, nodes: Tensor, swaps: int = MAX_SWAPS) -> Tensor:
    """Return for each place the atom that it is scored against.

    Parameters
    ----------
    bonds, atoms
        Log-probabilities (batch, R, N, N), symmetric, and (batch, N, F).
    adjacency, nodes
        The graphs, one-hot, of the same shapes.
    swaps
        Largest number of swaps.

    Returns
    -------
    Tensor
        (batch, N), each row a permutation.
    """
    batch, size = nodes.shape[:2]
    present = (nodes[..., -1] < 0.5).to(bonds)
    kinds = adjacency * present[:, None, :, None] * present[:, None, None, :]  # absent: no kind, no cost
    kinds = kinds * (1 - torch.eye(size, device=kinds.device, dtype=kinds.dtype))
    of_nodes = -torch.einsum("bif,bjf->bij", atoms, nodes)  # place i, atom j

    def cost(orders: Tensor) -> Tensor:
        there = permute_adjacency(kinds, orders)
        return of_nodes.gather(2, orders[:, :, None]).sum((1, 2)) - 0.5 * (bonds * there).sum((1, 2, 3))

    given = torch.arange(size, device=nodes.device).expand(batch, size)
    mean = bonds.exp().mean(3).clamp(min=1e-12).log()  # (batch, R, N), of a place
    paired = _assigned(of_nodes - 0.5 * torch.einsum("bri,brj->bij", mean, kinds.sum(3)))
    of_given, of_paired = cost(given), cost(paired)
    best, least = torch.where((of_paired < of_given)[:, None], paired, given), torch.minimum(of_paired, of_given)
    pairs = torch.triu_indices(size, size, 1, device=nodes.device)
    for _ in range(swaps):
        tried = best[:, None].repeat(1, pairs.shape[1], 1)  # (batch, pairs, N)
        which = torch.arange(pairs.shape[1], device=nodes.device)
        tried[:, which, pairs[0]], tried[:, which, pairs[1]] = best[:, pairs[1]], best[:, pairs[0]]
        reached, chosen = torch.stack([cost(each) for each in tried.unbind(1)], 1).min(1)
        better = reached < least - 1e-6
        if not better.any():
            break
        candidate = tried[torch.arange(batch, device=nodes.device), chosen]
        best, least = torch.where(better[:, None], candidate, best), torch.where(better, reached, least)
    return best


def permute_adjacency(adjacency: Tensor, orders: Tensor) -> Tensor:
    """Return (batch, R, N, N) with atom ``orders[i]`` at place i; orders (batch, N)."""
    rows = adjacency.gather(2, orders[:, None, :, None].expand_as(adjacency))
    return rows.gather(3, orders[:, None, None, :].expand_as(adjacency))


def permute_graph(adjacency: Tensor, nodes: Tensor, orders: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``adjacency`` (batch, R, N, N) and ``nodes`` (batch, N, F) with their atoms in the orders (batch, N)."""
    return permute_adjacency(adjacency, orders), nodes.gather(1, orders[:, :, None].expand_as(nodes))


def _assigned(costs: Tensor) -> Tensor:
    """Return the atom of each place (batch, N) by the cheapest assignment of costs (batch, N, N)."""
    from scipy.optimize import linear_sum_assignment  # late: it is slow to import, and few runs match

    found = [linear_sum_assignment(one)[1] for one in costs.double().cpu().numpy()]
    return torch.stack([torch.from_numpy(one) for one in found]).to(costs.device)
