"""ProtoNet's loss of an episode: queries are classified by their distance to the means of the support.

With c_k the mean of class k's support features, a query's logits are -||z - c_k||^2, and the loss is their
cross-entropy.

**Source**: Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017, equations 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def episode_loss(z: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss over the queries, a scalar.

    Parameters
    ----------
    z
        Features (classes * each, width), class by class; the first half of a class is its support.
    y
        Labels (classes * each,).

    Raises
    ------
    ValueError
        When classes differ in size, or their examples are not consecutive.
    """
    ways = len(torch.unique(y))
    each = len(y) // ways
    if each < 2 or len(y) != ways * each or not torch.equal(y, y[::each].repeat_interleave(each)):
        raise ValueError(f"an episode has its classes one after another, all of one size >= 2, got labels {y.tolist()}")
    support, query = torch.tensor_split(z.view(ways, each, -1), [each // 2], 1)
    means = support.mean(1)  # (classes, width)
    logits = -torch.cdist(query.flatten(0, 1), means).square()  # (queries, classes)
    return cross_entropy(logits, torch.arange(ways, device=z.device).repeat_interleave(each - each // 2))
