"""Message passing on complete graphs of fixed size: attention, updates of nodes and of edges, a readout.

Nodes are (batch, N, width), edges (batch, N, N, width of edges); edge (v, w) is in row v and column w. A mask says
from which nodes a node receives messages; without a mask from all.

**Source**: messages over edges: Gilmore et al., Neural Message Passing for Quantum Chemistry, ICML 2017; attention:
Velickovic et al., Graph Attention Networks, ICLR 2018; readout: Vinyals et al., Order Matters, ICLR 2016. Put together
as in Flam-Shepherd, Wu, Aspuru-Guzik, Graph Deconvolutional Generation, 2020, arXiv 2002.07087.

**Departures**: (1) attention sees the edge, too; (2) a message is a two-layer network of both nodes and the edge, not a
matrix made from the edge: its last layer is taken after the attended sum, which is the same since attention sums to 1;
(3) nodes and edges are layer-normalized after each update; (4) initial weights of messages, updates and queries can be
``INIT_GAIN`` times as large as torch's (:func:`scale_init`): with those, graphs differ so little after the readout that
a decoder first learns to ignore it (``tests/fedlab/models/test_mpgvae.py`` compares how far latents are apart).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from fedlab.models.recurrent import GRUCell, LSTMCell

INIT_GAIN = 3.0
SLOPE = 0.2  # of the attention's leaky ReLU, as in graph attention networks


class PairwiseLinear(nn.Module):
    """A linear layer of [h_v, h_w, e_vw] for all pairs, without building the pairs' vectors."""

    def __init__(self, width: int, edges: int, outputs: int) -> None:
        super().__init__()
        self.receiver = nn.Linear(width, outputs)
        self.sender = nn.Linear(width, outputs, bias=False)
        self.edge = nn.Linear(edges, outputs, bias=False) if edges else None

    def forward(self, h: Tensor, e: Tensor | None = None) -> Tensor:
        """Return (batch, N, N, outputs) of nodes (batch, N, width) and edges (batch, N, N, edges)."""
        found: Tensor = self.receiver(h)[:, :, None] + self.sender(h)[:, None]
        return found if self.edge is None else found + self.edge(e)


class MessagePassing(nn.Module):
    """m_v = sum_w alpha_vw M(h_v, h_w, e_vw), then h_v <- GRU(m_v, h_v)."""

    def __init__(self, width: int, edges: int) -> None:
        super().__init__()
        self.hidden = PairwiseLinear(width, edges, width)
        self.out = nn.Linear(width, width)
        self.attention = PairwiseLinear(width, edges, 1)
        self.update = GRUCell(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, e: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return updated nodes (batch, N, width).

        Parameters
        ----------
        h, e
            Nodes (batch, N, width) and edges (batch, N, N, edges).
        mask
            True where v receives from w (batch, N, N); None: everywhere.
        """
        logits = leaky_relu(self.attention(h, e).squeeze(-1), SLOPE)  # (batch, N, N)
        alpha = masked_softmax(logits, mask)
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
        """Return updated edges (batch, N, N, width) of nodes (batch, N, width) and edges."""
        updated: Tensor = self.norm(e + self.out(torch.relu(self.hidden(h, e))))
        return updated


class Set2Set(nn.Module):
    """A permutation-invariant readout: a vector (batch, 2 width) of a set of nodes.

    An LSTM makes ``steps`` queries, each from the last query and its answer; an answer is the attention-weighted mean
    of the nodes, softmax of <query, node>. The last query and its answer are the vector.
    """

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.query = LSTMCell(2 * width, width)

    def forward(self, h: Tensor, present: Tensor) -> Tensor:
        """Return (batch, 2 width) of nodes (batch, N, width), of which only the present ones (batch, N) count."""
        batch, _, width = h.shape
        query, cell, answer = h.new_zeros(batch, width), h.new_zeros(batch, width), h.new_zeros(batch, width)
        for _ in range(self.steps):
            query, cell = self.query(torch.cat([query, answer], 1), (query, cell))
            alpha = masked_softmax(torch.einsum("bnd,bd->bn", h, query), present)
            answer = torch.einsum("bn,bnd->bd", alpha, h)
        return torch.cat([query, answer], 1)


@torch.no_grad()
def scale_init(module: nn.Module) -> None:
    """Multiply the weights of linear and recurrent layers by ``INIT_GAIN``, in place."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.RNNCellBase):
            for name, weight in part.named_parameters(recurse=False):
                if name.startswith("weight"):
                    weight.mul_(INIT_GAIN)


def masked_softmax(logits: Tensor, present: Tensor | None) -> Tensor:
    """Return the softmax (..., entries) over the present entries; uniform, not NaN, where none is present."""
    if present is not None:
        logits = logits.masked_fill(~present, torch.finfo(logits.dtype).min)
    return logits.softmax(-1)
