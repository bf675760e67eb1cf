"""Losses of a student against a teacher's soft labels, and the parts that they are made of.

With q the teacher's probabilities and p the student's, both (batch, classes)::

    kl                     sum q (log q - log p)  =  cross-entropy of p under q  -  H(q)
    hard                   -log p at the argmax of q
    reverse_kl             sum p (log p - log q)  =  cross-entropy of q under p  -  H(p)
    reverse_cross_entropy  -sum p log q           =  reverse_kl  +  H(p)
    entropy                log(classes) - H(p),      KL of p from the uniform: the regularizer alone

each averaged over the batch. H(q) does not depend on the student, so ``kl`` has the very gradient of cross-entropy on
soft labels and regularizes no entropy of the student; in ``reverse_kl`` -H(p) is a true regularizer, and the two
lines below it are its parts.

**Source**: STARTUP (Phoo and Hariharan, ICLR 2021) and its published code: ``KLDivLoss(reduction="batchmean")`` with
the soft labels raised by 1e-6 and not normalized again. The other four are for ablations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

FLOOR = 1e-6  # what the published code adds to each soft label


def soft_targets(logits: Tensor, inverse_temperature: float = 1.0) -> Tensor:
    """Soft labels (batch, classes) of a teacher's logits: softmax(sharpness * logits) + 1e-6."""
    return (inverse_temperature * logits).softmax(1) + FLOOR


def kl(logits: Tensor, soft: Tensor) -> Tensor:
    """KL divergence of the student from the soft labels, as published."""
    return kl_div(logits.log_softmax(1), soft, reduction="batchmean")


def hard_label_ce(logits: Tensor, soft: Tensor) -> Tensor:
    """Cross-entropy on the likeliest class of each soft label."""
    return cross_entropy(logits, soft.argmax(1))


def reverse_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """-sum p log q: lowest for a student that puts all on the teacher's likeliest class."""
    return -(logits.softmax(1) * soft.log()).sum(1).mean()


def entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """log(classes) - H(p): lowest for a student that knows nothing; the soft labels are not looked at."""
    p = logits.log_softmax(1)
    return math.log(logits.shape[1]) + (p.exp() * p).sum(1).mean()


def reverse_kl(logits: Tensor, soft: Tensor) -> Tensor:
    """KL divergence the other way round: sum p (log p - log q)."""
    p = logits.log_softmax(1)
    return (p.exp() * (p - soft.log())).sum(1).mean()


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": kl,
    "hard": hard_label_ce,
    "reverse_kl": reverse_kl,
    "reverse_cross_entropy": reverse_cross_entropy,
    "entropy": entropy,
}


def shuffle_targets(soft: Tensor) -> Tensor:
    """The soft labels of a batch given to other images of it: the same entropies, nothing about an image."""
    return soft[torch.randperm(len(soft))]
