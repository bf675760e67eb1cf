"""What a generative model of graphs offers, and the pieces that such models share.

A graph is ``adjacency`` (batch, R, N, N) and ``nodes`` (batch, N, F), one-hot along R and along F, the last channel of
each meaning "no bond" and "no atom".
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import one_hot


@runtime_checkable
class GraphGenerator(Protocol):
    """A model that graphs are drawn from; the workload knows no more of it than this."""

    def loss(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """What training minimizes, a scalar; randomness comes from torch's current stream."""
        ...

    def nll(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """An upper bound of -log P(graph) in nats (batch,), of the one-hot tensors themselves."""
        ...

    def sample(
        self, count: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Graphs drawn from the model, one-hot; ``temperature`` scales the latents' standard deviation."""
        ...

    def encode(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Latents (batch, dimensions) of graphs, without noise; in eval mode."""
        ...

    def decode(self, latent: Tensor, *, drawn: bool = False) -> tuple[Tensor, Tensor]:
        """The graphs of latents, one-hot; in eval mode.

        Parameters
        ----------
        drawn
            As :meth:`sample` makes graphs of latents, where that is a draw; else the likeliest.
        """
        ...


def argmax_one_hot(scores: Tensor, dim: int) -> Tensor:
    """One-hot of the largest score along a dimension, the first of equal ones."""
    return one_hot(scores.argmax(dim), scores.shape[dim]).movedim(-1, dim).to(scores)


def symmetrize(adjacency: Tensor) -> Tensor:
    """(A + A^T) / 2 for every channel."""
    return (adjacency + adjacency.transpose(-1, -2)) / 2
