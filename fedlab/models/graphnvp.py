"""GraphNVP: a normalizing flow of molecular graphs, one for the adjacency tensor and one for the nodes given it.

Each coupling layer changes one column of the adjacency tensor, or one row of the node matrix, by a function of the
others, so the whole map inverts in closed form. Graphs are discrete; uniform noise makes them continuous in training.

Training, with z standard normal times one learned sigma:

    z_X = f_X(X + u; A),    nll_X = -log p(z_X) - log|det df_X|
    z_A = f_A(A + u'),      nll_A = -log p(z_A) - log|det df_A|
    loss = (nll_X / (N F) + nll_A / (N N R)) / 2

Sampling: z_A -> A, symmetrized, one-hot; then z_X given that A -> X, one-hot.

**Source**: Madhawa, Ishiguro, Nakago, Abe, GraphNVP: An Invertible Flow Model for Generating Molecular Graphs, 2019,
arXiv 1905.11600, sections 3 and 4; sizes, order of layers, initial values and loss after the authors' code. The
published runs are additive. 6,145,831 parameters for QM9, 245,792,665 for ZINC.

**Departures**: (1) the log-determinant of an affine layer is the sum of log s over what it changes; the public code
adds it up N times; (2) :meth:`GraphNVP.nll` adds noise as the loss does, since without it the density of a discrete
graph means nothing, and adds -D log(noise), which makes it a bound of the probability of the graph itself; the public
code evaluates without noise; (3) numbers of a conditioner's input come column by column, which is another order of the
same inputs; (4) affine node layers exist (``affine_nodes``) where the authors found them unstable and left them out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.models.graph_generator import argmax_one_hot, symmetrize
from fedlab.models.graphnvp_conditioners import AdjacencyConditioner, GraphNVPSizes, NodeConditioner
from fedlab.models.side_by_side import side_by_side


class GraphNVP(nn.Module):
    """Both flows and their prior; implements :class:`fedlab.models.graph_generator.GraphGenerator`.

    Parameters
    ----------
    affine
        Adjacency layers scale as well as shift.
    affine_nodes
        So do node layers.
    noise
        Width of the uniform noise, in (0, 1).
    """

    def __init__(
        self, sizes: GraphNVPSizes, *, affine: bool = False, affine_nodes: bool = False, noise: float = 0.9
    ) -> None:
        super().__init__()
        self.sizes, self.noise = sizes, noise
        self.adjacency = nn.ModuleList(AdjacencyConditioner(sizes, affine) for _ in range(sizes.adjacency_layers))
        self.nodes = nn.ModuleList(NodeConditioner(sizes, affine_nodes) for _ in range(sizes.node_layers))
        self.log_variance = nn.Parameter(torch.zeros(1))

    def compiled_parts(self) -> list[nn.Module]:
        """Return the conditioners, which are worth compiling: they are of two kinds."""
        return [*self.adjacency, *self.nodes]

    @property
    def dimensions(self) -> tuple[int, int]:
        """Return the dimensions of z_A and of z_X: N N R and N F."""
        return self.sizes.size**2 * self.sizes.channels, self.sizes.size * self.sizes.elements

    # --- likelihood ---

    def loss(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return the mean negative log-likelihood per dimension, a scalar in nats, of graphs with noise."""
        (of_adjacency, of_nodes), (many, few) = self._likelihoods(adjacency, nodes), self.dimensions
        return (of_adjacency.mean() / many + of_nodes.mean() / few) / 2

    def nll(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return a bound of -log P(graph) in nats (batch,), one draw of noise each.

        P is the density summed over the unit cube at each graph, of which noise fills a part of volume noise^D.
        """
        of_adjacency, of_nodes = self._likelihoods(adjacency, nodes)
        return of_adjacency + of_nodes - sum(self.dimensions) * math.log(self.noise)

    def _likelihoods(self, adjacency: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log p of A + u and of X + u given A, each (batch,)."""
        noisy_nodes = nodes + self.noise * torch.rand_like(nodes)
        noisy_adjacency = adjacency + self.noise * torch.rand_like(adjacency)
        (z_nodes, its_log_det), (z, log_det) = side_by_side(
            lambda: self.nodes_forward(noisy_nodes, adjacency), lambda: self.adjacency_forward(noisy_adjacency)
        )
        return self._prior(z) - log_det, self._prior(z_nodes) - its_log_det

    def _prior(self, z: Tensor) -> Tensor:
        """Return -log N(z; 0, exp(log_variance)) of each row (batch,)."""
        z, log_variance = z.flatten(1), self.log_variance
        return 0.5 * (z.square() * torch.exp(-log_variance) + log_variance + math.log(2 * math.pi)).sum(1)

    # --- the two maps ---

    def adjacency_forward(self, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        """Map A (batch, R, N, N) to z_A of the same shape, and log|det| (batch,)."""
        columns, log_det = _columns(adjacency), adjacency.new_zeros(len(adjacency))
        for number, layer in enumerate(self.adjacency):
            i = number % self.sizes.size
            shift, log_s = layer(_others(columns, i))
            columns, log_det = _apply(columns, i, shift, log_s, log_det)
        return _from_columns(columns, self.sizes), log_det

    def adjacency_inverse(self, z: Tensor) -> Tensor:
        """Map z_A (batch, R, N, N) to A, continuous, of the same shape."""
        columns = _columns(z)
        for number, layer in reversed(list(enumerate(self.adjacency))):
            i = number % self.sizes.size
            columns = _undo(columns, i, *layer(_others(columns, i)))
        return _from_columns(columns, self.sizes)

    def nodes_forward(self, nodes: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        """Map X (batch, N, F) given A to z_X of the same shape, and log|det| (batch,)."""
        rows, log_det = nodes, nodes.new_zeros(len(nodes))
        masks = _masks(nodes)
        for number, layer in enumerate(self.nodes):
            i = number % self.sizes.size
            shift, log_s = layer(rows * masks[i], adjacency)
            rows, log_det = _apply(rows, i, shift, log_s, log_det)
        return rows, log_det

    def nodes_inverse(self, z: Tensor, adjacency: Tensor) -> Tensor:
        """Map z_X (batch, N, F) given A to X, continuous, of the same shape."""
        rows, masks = z, _masks(z)
        for number, layer in reversed(list(enumerate(self.nodes))):
            i = number % self.sizes.size
            rows = _undo(rows, i, *layer(rows * masks[i], adjacency))
        return rows

    # --- graphs from latents, and back ---

    @torch.no_grad()
    def sample(
        self, count: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return one-hot graphs (batch, R, N, N) and (batch, N, F); in eval mode.

        z = temperature * sigma * eps gives A first, then X given A.
        """
        many, few = self.dimensions
        eps = torch.randn(count, many + few, generator=generator, device=self.log_variance.device)
        return self.decode(temperature * torch.exp(0.5 * self.log_variance) * eps)

    @torch.no_grad()
    def encode(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return z_A and z_X of graphs without noise, concatenated: (batch, N N R + N F)."""
        z, _ = self.adjacency_forward(adjacency)
        z_nodes, _ = self.nodes_forward(nodes, adjacency)
        return torch.cat([z.flatten(1), z_nodes.flatten(1)], dim=1)

    @torch.no_grad()
    def decode(self, latent: Tensor, *, sampled: bool = False) -> tuple[Tensor, Tensor]:
        """Return one-hot graphs of latents (batch, N N R + N F): the largest symmetrized bond channels and elements.

        A latent has one graph, so ``sampled`` changes nothing.

        Raises
        ------
        RuntimeError
            In training mode.
        """
        if self.training:
            raise RuntimeError("a GraphNVP inverts in eval mode only: call eval() first")
        n, f, r = self.sizes.size, self.sizes.elements, self.sizes.channels
        z, z_nodes = torch.split(latent, list(self.dimensions), dim=1)
        adjacency = argmax_one_hot(symmetrize(self.adjacency_inverse(z.view(-1, r, n, n))), dim=1)
        return adjacency, argmax_one_hot(self.nodes_inverse(z_nodes.view(-1, n, f), adjacency), dim=2)


def _columns(adjacency: Tensor) -> Tensor:
    """Return the N columns of all channels (batch, N, R N)."""
    return adjacency.permute(0, 3, 1, 2).flatten(2)


def _from_columns(columns: Tensor, sizes: GraphNVPSizes) -> Tensor:
    return columns.view(-1, sizes.size, sizes.channels, sizes.size).permute(0, 2, 3, 1)


def _masks(rows: Tensor) -> Tensor:
    """Return for each i the mask (N, 1) of all rows but i: (N, N, 1)."""
    return 1 - torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)[..., None]


def _others(columns: Tensor, i: int) -> Tensor:
    """Return all columns (batch, N, width) but one, side by side: (batch, (N - 1) width)."""
    others: Tensor = _Others.apply(columns, i)
    return others.flatten(1)


def _apply(parts: Tensor, i: int, shift: Tensor, log_s: Tensor | None, log_det: Tensor) -> tuple[Tensor, Tensor]:
    """Return parts (batch, N, width) with part i changed, and the log-determinant so far with that of the layer."""
    if log_s is None:
        moved: Tensor = _AddAt.apply(parts, i, shift)
        return moved, log_det
    return _with(parts, i, parts[:, i] * torch.exp(log_s) + shift), log_det + log_s.sum(1)


def _undo(parts: Tensor, i: int, shift: Tensor, log_s: Tensor | None) -> Tensor:
    """Return parts (batch, N, width) with the change of part i undone."""
    before = parts[:, i] - shift
    return _with(parts, i, before if log_s is None else before * torch.exp(-log_s))


def _with(parts: Tensor, i: int, part: Tensor) -> Tensor:
    """Return parts (batch, N, width) with another part i (batch, width)."""
    return torch.cat([parts[:, :i], part[:, None], parts[:, i + 1 :]], 1)


class _Others(torch.autograd.Function):
    """All parts but one; its gradient takes two kernels, where that of slices takes six."""

    generate_vmap_rule = True

    @staticmethod
    def forward(parts: Tensor, i: int) -> Tensor:
        return torch.cat([parts[:, :i], parts[:, i + 1 :]], 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.i = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        zeros = torch.zeros_like(gradient[:, :1])
        return torch.cat([gradient[:, : ctx.i], zeros, gradient[:, ctx.i :]], 1), None


class _AddAt(torch.autograd.Function):
    """Parts with a shift added to one of them; its gradient takes no kernel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(parts: Tensor, i: int, shift: Tensor) -> Tensor:
        return _with(parts, i, parts[:, i] + shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.i = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        return gradient, None, gradient[:, ctx.i]
