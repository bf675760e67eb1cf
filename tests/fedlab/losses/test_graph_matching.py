"""Matching of decoded places and atoms: costs by a plain loop, against all orders of small graphs."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from fedlab.losses.graph_matching import match_nodes, permute_graph
from fedlab.models.graph_generator import argmax_one_hot, symmetrize
from fedlab.seeds import seeded

SIZE, ELEMENTS, CHANNELS = 5, 4, 3


def decoded(count, sharpness=1.0):
    bonds = symmetrize(torch.randn(count, CHANNELS, SIZE, SIZE, dtype=torch.double) * sharpness).log_softmax(1)
    return bonds, (torch.randn(count, SIZE, ELEMENTS, dtype=torch.double) * sharpness).log_softmax(2)


def graphs(count):
    adjacency = argmax_one_hot(symmetrize(torch.randn(count, CHANNELS, SIZE, SIZE, dtype=torch.double)), 1)
    return adjacency, argmax_one_hot(torch.randn(count, SIZE, ELEMENTS, dtype=torch.double), 2)


def cost(bonds, atoms, adjacency, nodes, order):
    """Of one graph, term by term: (R, N, N), (N, F), and the same of the graph."""
    total = 0.0
    elements = [int(nodes[atom].argmax()) for atom in order]
    for i, element in enumerate(elements):
        total -= atoms[i, element].item()
        for k in range(i + 1, len(order)):
            if element != ELEMENTS - 1 and elements[k] != ELEMENTS - 1:
                total -= bonds[int(adjacency[:, order[i], order[k]].argmax()), i, k].item()
    return total


@pytest.fixture
def batch():
    with seeded("matching"):
        return *decoded(12), *graphs(12)


def test_the_order_found_is_never_dearer_than_the_given_one_and_mostly_the_cheapest_of_all(batch):
    orders = match_nodes(*batch)
    excess = []
    for row, order in enumerate(orders.tolist()):
        one = [part[row] for part in batch]
        assert sorted(order) == list(range(SIZE))
        least = min(cost(*one, other) for other in permutations(range(SIZE)))
        assert least - 1e-9 <= cost(*one, order) <= cost(*one, range(SIZE)) + 1e-9
        excess.append(cost(*one, order) / least - 1)
    assert sum(part < 1e-9 for part in excess) > len(excess) / 2
    assert sum(excess) / len(excess) < 0.03


def test_a_graph_that_the_decoder_is_sure_of_is_found_in_whatever_order_it_comes():
    with seeded("sure"):
        adjacency, nodes = graphs(30)
        shuffle = torch.rand(30, SIZE).argsort(1)
        moved, its = permute_graph(adjacency, nodes, shuffle)
        bonds, atoms = (5 * adjacency).log_softmax(1), (5 * nodes).log_softmax(2)
    orders = match_nodes(bonds, atoms, moved, its)
    for row in range(30):
        given = cost(bonds[row], atoms[row], adjacency[row], nodes[row], range(SIZE))
        assert cost(bonds[row], atoms[row], moved[row], its[row], orders[row].tolist()) == pytest.approx(given)


def test_swaps_save(batch):
    def total(swaps):
        orders = match_nodes(*batch, swaps=swaps).tolist()
        return sum(cost(*(part[row] for part in batch), order) for row, order in enumerate(orders))

    as_given = sum(cost(*(part[row] for part in batch), range(SIZE)) for row in range(12))
    assert total(12) < total(1) < total(0) < as_given


def test_reordered_graphs_have_atom_order_i_at_place_i():
    with seeded("graphs"):
        adjacency, nodes = graphs(3)
        orders = torch.rand(3, SIZE).argsort(1)
    moved, its = permute_graph(adjacency, nodes, orders)
    for row, order in enumerate(orders):
        assert torch.equal(its[row], nodes[row, order])
        assert torch.equal(moved[row], adjacency[row][:, order][:, :, order])
