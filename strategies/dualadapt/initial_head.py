"""Initial heads that a late joiner makes or chooses itself, from its own features and without a label.

It sends the head with its first mixture, and tells with it the global head's mean prediction on its data
(``balanced``), or which client's head fits it (``agreement``).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from fedlab.models.feature_classifier import probabilities
from fedlab.strategies.dualadapt.local_head import pseudo_labels
from fedlab.strategies.dualadapt.shared import Options

SIGNIFICANCE = 0.025  # of another head's advantage over F_g: two standard errors, on one side


def initial_head(head: nn.Module, candidates: Sequence[nn.Module], z: Tensor, options: Options) -> nn.Module | None:
    """Return the initial head of a late joiner; None where the server chooses it.

    Parameters
    ----------
    head
        F_g.
    candidates
        Heads of known clients.
    z
        The late joiner's features (examples, width).
    """
    if options.late_joiner_init == "balanced":
        return balanced(head, z)
    if options.late_joiner_init == "agreement":
        return most_agreeing(head, candidates, z, pseudo_labels(z, probabilities(head, z), options))
    return None


@torch.no_grad()
def balanced(head: nn.Module, z: Tensor) -> nn.Module:
    """Return a copy of a head whose probabilities are divided by their mean over features z, as far as it can be.

    The division is a shift of the biases of its last linear layer; a head without these is returned as it is.

    Examples
    --------
    >>> head = nn.Linear(1, 2)
    >>> _ = nn.init.zeros_(head.weight), head.bias.data.copy_(torch.tensor([1.0, 0.0]))
    >>> balanced(head, torch.zeros(3, 1))(torch.zeros(1, 1)).softmax(1)
    tensor([[0.5000, 0.5000]])
    """
    shifted, mean = deepcopy(head), probabilities(head, z).mean(0)
    layers = [layer for layer in shifted.modules() if isinstance(layer, nn.Linear)]
    if layers and layers[-1].bias is not None and len(layers[-1].bias) == len(mean):
        layers[-1].bias.sub_(mean.clamp_min(1e-6).log())
    return shifted


def most_agreeing(head: nn.Module, candidates: Sequence[nn.Module], z: Tensor, labels: Tensor) -> nn.Module:
    """Return the candidate that gives most features their labels, if it does so clearly more often than the head.

    Only features count to which one of both gives the label and the other does not. Were both heads equally good, each
    would be right on such a one with probability 1/2: the candidate is taken where as many or more would then be its
    own with a probability below ``SIGNIFICANCE``, divided by the number of candidates (Bonferroni), since the best
    of many heads looks good by chance.

    Parameters
    ----------
    head
        F_g, which is returned where no candidate is clearly better.
    z, labels
        Features (examples, width) and pseudo-labels (examples,).
    """
    if not candidates:
        return head
    right = torch.stack([probabilities(one, z).argmax(1) == labels for one in [head, *candidates]])
    best = int(right[1:].sum(1).argmax())
    gained, lost = (right[1 + best] & ~right[0]).sum(), (right[0] & ~right[1 + best]).sum()
    clear = sign_test(int(gained), int(lost)) < SIGNIFICANCE / len(candidates)
    return candidates[best] if clear else head


def sign_test(more: int, less: int) -> float:
    """Return the probability of ``more`` or more heads in ``more + less`` tosses of a fair coin.

    For pairs of outcomes on the same examples this is the exact form of McNemar's test (Psychometrika, 1947), on one
    side.

    Examples
    --------
    >>> sign_test(2, 0)
    0.25
    """
    from scipy.stats import binom  # late: a second to import, for which only a late joiner has to wait

    return float(binom.sf(more - 1, more + less, 0.5))
