"""Networks of GraphNVP: what a coupling layer computes its shift and scale with, from the parts that it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

INIT_WEIGHT = 1e-10  # every weight of a conditioner's last layer, so that a new flow is nearly the identity
EPSILON = 2e-5  # of batch norms, as in Chainer


@dataclass(frozen=True)
class GraphNVPSizes:
    """Sizes of a GraphNVP.

    Attributes
    ----------
    size, elements
        N and F.
    adjacency_layers, node_layers
        Numbers of coupling layers; layer l changes column or row l mod N.
    mlp
        Widths of an adjacency conditioner.
    gcn
        Widths of a node conditioner's embedding and of its graph convolutions.
    hidden
        Widths of its graph vector, and of the layer after it.
    """

    size: int
    elements: int
    adjacency_layers: int
    node_layers: int
    mlp: tuple[int, ...]
    gcn: tuple[int, ...]
    hidden: tuple[int, int]
    channels: int = 4


QM9_SIZES = GraphNVPSizes(9, 5, 36, 27, (256, 256), (8, 64), (128, 64))
ZINC_SIZES = GraphNVPSizes(38, 10, 38, 38, (1024, 512), (16, 128), (256, 64))


class CouplingHead(nn.Module):
    """tanh and a linear layer scaled by exp(2 scale): shift and, if affine, log factor of a coupling layer."""

    def __init__(self, width: int, outputs: int, affine: bool) -> None:
        super().__init__()
        self.affine = affine
        self.linear = nn.Linear(width, outputs * (2 if affine else 1))
        nn.init.constant_(self.linear.weight, INIT_WEIGHT)
        nn.init.zeros_(self.linear.bias)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return shift and log factor, each (batch, outputs), of h (batch, width); no log factor where additive."""
        found = self.linear(torch.tanh(h)) * torch.exp(2 * self.scale)
        if not self.affine:
            return found, None
        log_s, shift = found.chunk(2, dim=1)
        return shift, nn.functional.logsigmoid(log_s + 2)


class AdjacencyConditioner(nn.Module):
    """All columns but one, (batch, (N - 1) R N), to shift and log factor of that one, (batch, R N)."""

    def __init__(self, sizes: GraphNVPSizes, affine: bool) -> None:
        super().__init__()
        column = sizes.channels * sizes.size
        inputs = column * (sizes.size - 1)
        self.norm = nn.BatchNorm1d(inputs, eps=EPSILON)
        widths, layers = (inputs, *sizes.mlp), list[nn.Module]()
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.head = CouplingHead(sizes.mlp[-1], column, affine)

    def forward(self, others: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return shift (batch, R N), and the log factor or None."""
        return self.head(self.mlp(self.norm(others)))  # type: ignore[no-any-return]


class RelationalLayer(nn.Module):
    """h <- ReLU(W_0 h + b_0 + sum over channels r of A_r (W_r h + b_r)), not normalized by degree."""

    def __init__(self, inputs: int, outputs: int, channels: int) -> None:
        super().__init__()
        self.own = nn.Linear(inputs, outputs)
        self.neighbours = nn.Linear(inputs, outputs * channels)  # of all W_r and b_r, channel by channel
        self.channels = channels

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """Return (batch, N, outputs) of h (batch, N, inputs) and adjacency (batch, R, N, N)."""
        weight = self.neighbours.weight.view(self.channels, -1, h.shape[-1])  # (R, outputs, inputs)
        bias = self.neighbours.bias.view(self.channels, -1)  # (R, outputs)
        gathered = adjacency @ h[:, None]  # (batch, R, N, inputs): fewer numbers than after W_r
        degrees = adjacency.sum(-1)  # (batch, R, N)
        messages = torch.einsum("brni,roi->bno", gathered, weight) + torch.einsum("brn,ro->bno", degrees, bias)
        return torch.relu(self.own(h) + messages)


class NodeConditioner(nn.Module):
    """Nodes with one row zeroed (batch, N, F) and the graph (batch, R, N, N) to that row's shift and log factor."""

    def __init__(self, sizes: GraphNVPSizes, affine: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(sizes.elements, sizes.gcn[0])
        self.layers = nn.ModuleList(
            RelationalLayer(before, after, sizes.channels) for before, after in pairwise(sizes.gcn)
        )
        vector, width = sizes.hidden
        self.gate = nn.Linear(sizes.gcn[-1], vector, bias=False)
        self.value = nn.Linear(sizes.gcn[-1], vector, bias=False)
        self.norm = nn.BatchNorm1d(vector, eps=EPSILON)
        self.linear = nn.Linear(vector, width)
        self.head = CouplingHead(width, sizes.elements, affine)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return shift (batch, F), and the log factor or None."""
        h = self.embed(nodes)  # (batch, N, width)
        for layer in self.layers:
            h = layer(h, adjacency)
        vector = torch.tanh((torch.sigmoid(self.gate(h)) * torch.tanh(self.value(h))).sum(1))
        return self.head(self.linear(self.norm(vector)))  # type: ignore[no-any-return]
