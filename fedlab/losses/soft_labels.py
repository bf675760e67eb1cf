"""Distillation losses of a student against a teacher's soft labels, and their parts.

With q the teacher's probabilities and p the student's, both (batch, classes)::

    kl                     sum q (log q - log p)  =  cross-entropy of p under q  -  H(q)
    hard                   -log p at the argmax of q
    reverse_kl             sum p (log p - log q)  =  cross-entropy of q under p  -  H(p)
    reverse_cross_entropy  -sum p log q           =  reverse_kl  +  H(p)
    entropy                log(classes) - H(p),      KL of p from the uniform: the regularizer alone

each averaged over the batch. H(q) does not depend on the student, so ``kl`` has exactly the gradient of cross-entropy
on soft labels and regularizes no entropy of the student; in ``reverse_kl`` -H(p) is a true regularizer, and the two
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
    """Return soft labels (batch, classes) of a teacher's logits: softmax(inverse_temperature * logits) + 1e-6."""
    return (inverse_temperature * logits).softmax(1) + FLOOR


def kl(logits: Tensor, soft: Tensor) -> Tensor:
    """Return the KL divergence of the student from the soft labels, as published: a scalar."""
    return kl_div(logits.log_softmax(1), soft, reduction="batchmean")


def hard_label_ce(logits: Tensor, soft: Tensor) -> Tensor:
    """Return the cross-entropy on the likeliest class of each soft label, a scalar."""
    return cross_entropy(logits, soft.argmax(1))


def reverse_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """Return -sum p log q, a scalar: lowest for certainty about the teacher's likeliest class."""
    return -(logits.softmax(1) * soft.log()).sum(1).mean()


def entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """Return log(classes) - H(p), a scalar: lowest for a uniform prediction; the soft labels are not used."""
    p = logits.log_softmax(1)
    return math.log(logits.shape[1]) + (p.exp() * p).sum(1).mean()


def reverse_kl(logits: Tensor, soft: Tensor) -> Tensor:
    """Return the reverse KL divergence, sum p (log p - log q): a scalar."""
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
    """Return soft labels (batch, classes) in random order: the same entropies, no information about an image."""
    return soft[torch.randperm(len(soft))]
