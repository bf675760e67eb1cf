"""The interface of generative models of graphs, and functions that such models share.

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
    """Interface of a model that graphs are sampled from; the workload uses nothing else of it."""

    def loss(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return the training loss, a scalar; randomness comes from torch's current stream."""
        ...

    def nll(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return an upper bound of -log P(graph) in nats (batch,), for the one-hot tensors themselves."""
        ...

    def sample(
        self, count: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return sampled graphs (batch, R, N, N) and (batch, N, F), one-hot.

        ``temperature`` scales the latents' standard deviation.
        """
        ...

    def encode(self, adjacency: Tensor, nodes: Tensor) -> Tensor:
        """Return latents (batch, dimensions) of graphs, without noise; in eval mode."""
        ...

    def decode(self, latent: Tensor, *, sampled: bool = False) -> tuple[Tensor, Tensor]:
        """Return the graphs of latents (batch, dimensions), one-hot; in eval mode.

        Parameters
        ----------
        sampled
            Decode as :meth:`sample` does, where that is random; else the likeliest graphs.
        """
        ...


def argmax_one_hot(scores: Tensor, dim: int) -> Tensor:
    """Return the one-hot encoding of the largest score along ``dim``, of the first among equals; same shape."""
    return one_hot(scores.argmax(dim), scores.shape[dim]).movedim(-1, dim).to(scores)


def symmetrize(adjacency: Tensor) -> Tensor:
    """Return (A + A^T) / 2 for every channel of (batch, R, N, N)."""
    return (adjacency + adjacency.transpose(-1, -2)) / 2
