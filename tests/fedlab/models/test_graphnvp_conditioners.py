"""Networks of a coupling layer beside plain loops, and what a new one does."""

from __future__ import annotations

import pytest
import torch

from fedlab.models.graphnvp_conditioners import (
    AdjacencyConditioner,
    CouplingHead,
    GraphNVPSizes,
    NodeConditioner,
    RelationalLayer,
)
from fedlab.seeds import seeded

TINY = GraphNVPSizes(3, 3, 5, 4, (6, 5), (4, 6), (5, 4))


def test_a_relational_layer_is_the_plain_loop_over_atoms_and_channels():
    with seeded("layer"):
        layer, h, adjacency = (
            RelationalLayer(4, 6, 4).double(),
            torch.randn(2, 3, 4).double(),
            torch.rand(2, 4, 3, 3).double(),
        )
    w, b = layer.neighbours.weight, layer.neighbours.bias
    for graph in range(2):
        for v in range(3):
            total = layer.own(h[graph, v])
            for r in range(4):
                for u in range(3):
                    message = w[6 * r : 6 * r + 6] @ h[graph, u] + b[6 * r : 6 * r + 6]
                    total = total + adjacency[graph, r, v, u] * message
            torch.testing.assert_close(layer(h, adjacency)[graph, v], total.relu())


@pytest.mark.parametrize("affine", [False, True])
def test_shift_and_log_factor_have_the_shape_of_what_they_change_and_begin_near_zero(affine):
    n, r, f = TINY.size, TINY.channels, TINY.elements
    with seeded("conditioners"):
        others, nodes = torch.randn(2, (n - 1) * r * n), torch.randn(2, n, f)
        found = (
            (AdjacencyConditioner(TINY, affine).eval()(others), (2, r * n)),
            (NodeConditioner(TINY, affine).eval()(nodes, torch.rand(2, r, n, n)), (2, f)),
            (CouplingHead(7, 4, affine)(torch.randn(2, 7)), (2, 4)),
        )
    for (shift, log_s), shape in found:
        assert shift.shape == shape and (log_s is not None) == affine
        assert bool((shift.abs() < 1e-6).all())
        if log_s is not None:
            assert log_s.shape == shape and bool((log_s < 0).all())
