"""Message passing: layers against plain loops over nodes and pairs, absent nodes, order."""

from __future__ import annotations

import torch
from torch.nn.functional import leaky_relu

from fedlab.models.message_passing import (
    INIT_GAIN,
    EdgeUpdate,
    MessagePassing,
    PairwiseLinear,
    Set2Set,
    masked_softmax,
    scale_init,
)
from fedlab.seeds import seeded

N, WIDTH, EDGES = 4, 6, 3


def made(make):
    with seeded("layer"):
        return make().double(), torch.randn(2, N, WIDTH).double(), torch.randn(2, N, N, EDGES).double()


def test_pairs_are_one_linear_layer_of_both_nodes_and_the_edge():
    layer, h, e = made(lambda: PairwiseLinear(WIDTH, EDGES, 5))
    weight = torch.cat([layer.receiver.weight, layer.sender.weight, layer.edge.weight], 1)
    for v in range(N):
        for w in range(N):
            both = torch.cat([h[1, v], h[1, w], e[1, v, w]])
            torch.testing.assert_close(layer(h, e)[1, v, w], weight @ both + layer.receiver.bias)


def test_a_message_is_the_attended_sum_of_a_networks_outputs():
    """The network's last layer is taken for each pair here, before the sum."""
    layer, h, e = made(lambda: MessagePassing(WIDTH, EDGES))
    with seeded("heard"):
        heard = (torch.rand(2, N, N) < 0.5) | torch.eye(N, dtype=torch.bool)
    found = layer(h, e, heard)
    hidden, logits = layer.hidden(h, e), layer.attention(h, e)[..., 0]
    for graph in range(2):
        for v in range(N):
            there = [w for w in range(N) if heard[graph, v, w]]
            alpha = torch.stack([leaky_relu(logits[graph, v, w], 0.2) for w in there]).softmax(0)
            message = sum(a * layer.out(hidden[graph, v, w].relu()) for a, w in zip(alpha, there, strict=True))
            updated = layer.update(message[None], h[graph, v][None])[0]
            torch.testing.assert_close(found[graph, v], layer.norm(updated))
    assert not heard.all() and not torch.allclose(found, layer(h, e))


def test_edges_are_updated_by_a_residual_network():
    layer, h, _ = made(lambda: EdgeUpdate(WIDTH))
    with seeded("edges"):
        e = torch.randn(2, N, N, WIDTH).double()
    torch.testing.assert_close(layer(h, e), layer.norm(e + layer.out(layer.hidden(h, e).relu())))


def test_the_readout_is_the_plain_recurrence_whatever_the_order_of_the_nodes():
    layer, h, _ = made(lambda: Set2Set(WIDTH, 3))
    present = torch.tensor([[True, True, False, True], [True] * N])
    found = layer(h, present)
    for graph in range(2):
        nodes = h[graph, present[graph]]
        asked = cell = heard = torch.zeros(1, WIDTH).double()
        for _ in range(3):
            asked, cell = layer.query(torch.cat([asked, heard], 1), (asked, cell))
            heard = ((nodes @ asked[0]).softmax(0)[:, None] * nodes).sum(0)[None]
        torch.testing.assert_close(found[graph], torch.cat([asked, heard], 1)[0])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(layer(h[:, order], present[:, order]), found)


def test_widened_weights_are_those_of_linear_and_recurrent_layers_alone():
    layer, _, _ = made(lambda: MessagePassing(WIDTH, EDGES))
    before = {name: weight.detach().clone() for name, weight in layer.named_parameters()}
    scale_init(layer)
    for name, weight in layer.named_parameters():
        wide = "norm" not in name and "weight" in name
        torch.testing.assert_close(weight.detach(), before[name] * (INIT_GAIN if wide else 1.0))


def test_a_softmax_over_nothing_is_even_and_not_nan():
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]])
    present = torch.tensor([[True, True, False], [False, False, False]])
    found = masked_softmax(logits, present)
    torch.testing.assert_close(found[0, :2], torch.tensor([1.0, 2.0]).softmax(0))
    assert found[0, 2] == 0
    torch.testing.assert_close(found[1], torch.full((3,), 1 / 3))
