"""Classifiers on frozen features, one for each episode, all of a batch of episodes at once.

:func:`fit_linear_classifiers` trains every episode's linear classifier as STARTUP's evaluation does: 100 epochs of SGD
on batches of four, learning rate 0.01, momentum 0.9, dampening 0.9, weight decay 0.001, from ``nn.Linear``'s random
initial weights. Such a classifier never leaves the direction of its initial weights plus the span of its n support
features,

    W = c W_0 + A^T Z,     Z (n, width),  A (n, ways),

and momentum and weight decay keep it there: they act on c and A by the same rules as on W. So the steps are taken on A,
which has n numbers a class where W has ``width``, and the only products with features are made once, before the first
step. Equal to ``torch.optim.SGD`` on ``nn.Linear`` to rounding (``tests/fedlab/models/test_linear_classifiers.py``).

:func:`prototype_logits` is ProtoNet's classifier.

**Source**: evaluation of Guo et al., ECCV 2020, and of STARTUP (Phoo and Hariharan, ICLR 2021); Snell et al.,
Prototypical Networks for Few-shot Learning, NeurIPS 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassifierTraining:
    """Hyperparameters of SGD; the defaults are those of the published evaluation."""

    epochs: int = 100
    batch: int = 4
    learning_rate: float = 0.01
    momentum: float = 0.9
    dampening: float = 0.9
    weight_decay: float = 0.001


PUBLISHED = ClassifierTraining()


@dataclass(frozen=True)
class ClassifierInit:
    """All random numbers of training: initial weights and the order of examples.

    Attributes
    ----------
    weight, bias
        (episodes, ways, width) and (episodes, ways), as ``nn.Linear`` draws them.
    orders
        Order of the support examples in each epoch, (epochs, episodes, n).
    """

    weight: Tensor
    bias: Tensor
    orders: Tensor

    def to(self, device: torch.device) -> ClassifierInit:
        """Return the same on a device."""
        return ClassifierInit(self.weight.to(device), self.bias.to(device), self.orders.to(device))


def init_classifiers(
    episodes: int, ways: int, support: int, width: int, epochs: int = PUBLISHED.epochs
) -> ClassifierInit:
    """Return initial weights for each episode from torch's current random stream.

    Parameters
    ----------
    episodes, ways, support, width
        Numbers of episodes, classes, support examples of an episode, and features.
    epochs
        Epochs of training.
    """
    bound = 1 / math.sqrt(width)
    return ClassifierInit(
        torch.empty(episodes, ways, width).uniform_(-bound, bound),
        torch.empty(episodes, ways).uniform_(-bound, bound),
        torch.rand(epochs, episodes, support).argsort(2),
    )


def fit_linear_classifiers(
    support: Tensor, labels: Tensor, query: Tensor, start: ClassifierInit, training: ClassifierTraining = PUBLISHED
) -> Tensor:
    """Return the logits (episodes, m, ways) of the queries after training.

    Parameters
    ----------
    support, query
        Features (episodes, n, width) and (episodes, m, width).
    labels
        Class numbers (n,) of the support, the same in every episode.
    start
        Initial weights and the order of examples.
    training
        Hyperparameters.
    """
    episodes, count, _ = support.shape
    ways = start.bias.shape[1]
    kernel = support @ support.mT  # (episodes, n, n)
    fixed = support @ start.weight.mT  # (episodes, n, ways): what W_0 makes of the support
    targets = torch.nn.functional.one_hot(labels, ways).to(support)  # (n, ways)
    dual, bias, scale = support.new_zeros(episodes, count, ways), start.bias.clone(), 1.0
    speed_dual, speed_bias, speed_scale = torch.zeros_like(dual), torch.zeros_like(bias), 0.0
    keep, decay, rate = training.momentum, training.weight_decay, training.learning_rate
    undamped = 1.0  # torch's SGD takes the first gradient whole, later ones by 1 - dampening
    each = torch.arange(episodes, device=support.device)[:, None]
    for order in start.orders:
        for rows in order.split(training.batch, 1):  # (episodes, batch)
            logits = torch.baddbmm(scale * fixed[each, rows] + bias[:, None], kernel[each, rows], dual)
            slope = (logits.softmax(2) - targets[rows]) / rows.shape[1]  # (episodes, batch, ways)
            speed_dual.mul_(keep).add_(dual, alpha=undamped * decay)
            speed_dual[each, rows] += undamped * slope
            speed_bias.mul_(keep).add_(slope.sum(1), alpha=undamped).add_(bias, alpha=undamped * decay)
            speed_scale = keep * speed_scale + undamped * decay * scale
            dual.sub_(speed_dual, alpha=rate)
            bias.sub_(speed_bias, alpha=rate)
            scale -= rate * speed_scale
            undamped = 1 - training.dampening
    weight = scale * start.weight + dual.mT @ support  # (episodes, ways, width)
    return torch.baddbmm(bias[:, None].expand(-1, query.shape[1], -1), query, weight.mT)


def prototype_logits(support: Tensor, query: Tensor, ways: int) -> Tensor:
    """Return minus the squared distance of each query to each class's mean, (episodes, m, ways).

    ``support`` (episodes, n, width) is ordered class by class; ``query`` is (episodes, m, width).
    """
    episodes, count, width = support.shape
    means = support.view(episodes, ways, count // ways, width).mean(2)
    return -torch.cdist(query, means).square()
