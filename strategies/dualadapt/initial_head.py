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
        return most_agreeing([head, *candidates], z, pseudo_labels(z, probabilities(head, z), options))
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


def most_agreeing(heads: Sequence[nn.Module], z: Tensor, labels: Tensor) -> nn.Module:
    """Return the head that gives most features z (examples, width) their labels (examples,); of equals the first."""
    right = torch.stack([(probabilities(head, z).argmax(1) == labels).sum() for head in heads])
    return heads[int(right.argmax())]
