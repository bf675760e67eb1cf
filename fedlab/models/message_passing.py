"""Message passing on complete graphs of fixed size: attended messages, updates of nodes and of edges, a readout.

Nodes are (batch, N, width), edges (batch, N, N, width of edges); an edge v, w lies in row v and column w. A mask says
which nodes a node hears; all, where there is none.

**Source**: messages over edges: Gilmore et al., Neural Message Passing for Quantum Chemistry, ICML 2017; attention:
Velickovic et al., Graph Attention Networks, ICLR 2018; readout: Vinyals et al., Order Matters, ICLR 2016. Put together
as in Flam-Shepherd, Wu, Aspuru-Guzik, Graph Deconvolutional Generation, 2020, arXiv 2002.07087.

**Departures**: (1) attention sees the edge, too; (2) a message is a two-layer network of both nodes and the edge, not a
matrix made from the edge: its last layer is taken after the attended sum, which is the same since attention sums to 1;
(3) nodes and edges are layer-normalized after each update; (4) weights of messages, updates and queries can start
``INIT_GAIN`` times as large as torch's (:func:`scale_init`): with those, graphs differ so little after the readout that a
decoder first learns to do without it (``tests/fedlab/models/test_mpgvae.py`` compares how far latents are apart).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

INIT_GAIN = 3.0
SLOPE = 0.2  # of the attention's leaky ReLU, as in graph attention networks


class PairwiseLinear(nn.Module):
    """A linear layer of [h_v, h_w, e_vw] for all pairs, without making the pairs' vectors."""

    def __init__(self, width: int, edges: int, outputs: int) -> None:
        super().__init__()
        self.receiver = nn.Linear(width, outputs)
        self.sender = nn.Linear(width, outputs, bias=False)
        self.edge = nn.Linear(edges, outputs, bias=False) if edges else None

    def forward(self, h: Tensor, e: Tensor | None = None) -> Tensor:
        """From (batch, N, width) and (batch, N, N, edges) to (batch, N, N, outputs)."""
        found: Tensor = self.receiver(h)[:, :, None] + self.sender(h)[:, None]
        return found if self.edge is None else found + self.edge(e)


class MessagePassing(nn.Module):
    """m_v = sum_w alpha_vw M(h_v, h_w, e_vw), then h_v <- GRU(m_v, h_v)."""

    def __init__(self, width: int, edges: int) -> None:
        super().__init__()
        self.hidden = PairwiseLinear(width, edges, width)
        self.out = nn.Linear(width, width)
        self.attention = PairwiseLinear(width, edges, 1)
        self.update = nn.GRUCell(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, e: Tensor, heard: Tensor | None = None) -> Tensor:
        """New nodes (batch, N, width).

        Parameters
        ----------
        heard
            Whether v hears w (batch, N, N); None: always.
        """
        logits = leaky_relu(self.attention(h, e).squeeze(-1), SLOPE)  # (batch, N, N)
        alpha = masked_softmax(logits, heard)
        message = self.out(torch.einsum("bvw,bvwd->bvd", alpha, torch.relu(self.hidden(h, e))))
        updated: Tensor = self.norm(self.update(message.flatten(0, 1), h.flatten(0, 1)).view_as(h))
        return updated


class EdgeUpdate(nn.Module):
    """e_vw <- e_vw + a two-layer network of h_v, h_w and e_vw."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = PairwiseLinear(width, width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """New edges (batch, N, N, width)."""
        updated: Tensor = self.norm(e + self.out(torch.relu(self.hidden(h, e))))
        return updated


class Set2Set(nn.Module):
    """A vector (batch, 2 width) of a set of nodes, whatever their order.

    An LSTM asks ``steps`` times, each time with what it asked and heard before; an answer is the mean of the nodes by
    attention, softmax of <query, node>. What it asked and heard last is the vector.
    """

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.query = nn.LSTMCell(2 * width, width)

    def forward(self, h: Tensor, present: Tensor) -> Tensor:
        """From nodes (batch, N, width), of which only the present ones (batch, N) count."""
        batch, _, width = h.shape
        asked, cell, heard = h.new_zeros(batch, width), h.new_zeros(batch, width), h.new_zeros(batch, width)
        for _ in range(self.steps):
            asked, cell = self.query(torch.cat([asked, heard], 1), (asked, cell))
            alpha = masked_softmax(torch.einsum("bnd,bd->bn", h, asked), present)
            heard = torch.einsum("bn,bnd->bd", alpha, h)
        return torch.cat([asked, heard], 1)


@torch.no_grad()
def scale_init(module: nn.Module) -> None:
    """Make the weights of linear and recurrent layers ``INIT_GAIN`` times as large."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.RNNCellBase):
            for name, weight in part.named_parameters(recurse=False):
                if name.startswith("weight"):
                    weight.mul_(INIT_GAIN)


def masked_softmax(logits: Tensor, present: Tensor | None) -> Tensor:
    """Softmax along the last dimension over what is present; where nothing is, all are equal, not NaN."""
    if present is not None:
        logits = logits.masked_fill(~present, torch.finfo(logits.dtype).min)
    return logits.softmax(-1)
