"""Class-balanced pseudo-labels: probabilities scaled so that every class gets as many examples.

**Source**: Sinkhorn and Knopp 1967; for pseudo-labels: Asano et al., arXiv 1911.05371, ICLR 2020.
"""

from __future__ import annotations

from torch import Tensor


def sinkhorn(probabilities: Tensor, iterations: int = 5) -> Tensor:
    """Scale columns to equal sums and rows to 1, in turn.

    Parameters
    ----------
    probabilities
        Non-negative (examples, classes).
    iterations
        Number of turns; 0: rows are scaled to 1 and nothing else.

    Returns
    -------
    Tensor
        Probabilities (examples, classes), rows sum to 1 and columns, with enough turns, to examples / classes.

    Examples
    --------
    >>> import torch
    >>> sinkhorn(torch.tensor([[0.8, 0.2], [0.6, 0.4]]), 20).argmax(1)
    tensor([0, 1])
    """
    q = probabilities / probabilities.sum(1, keepdim=True).clamp_min(1e-12)
    for _ in range(iterations):
        q = q / q.sum(0).clamp_min(1e-12)
        q = q / q.sum(1, keepdim=True).clamp_min(1e-12)
    return q
