"""Cross-entropy of images that are mixed of two, as by CutMix."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def mixed_cross_entropy(logits: Tensor, y: Tensor, other: Tensor, share: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean of (1 - share) * CE(y) + share * CE(other), a scalar.

    It is the cross-entropy with the mixture of both labels, since it is linear in them.

    Parameters
    ----------
    logits
        (batch, classes).
    y, other
        Labels (batch,), integers.
    share
        Weight of the second label (batch,), in [0, 1].
    smoothing
        Fraction of each label that is spread over all classes.

    **Source**: Yun et al., CutMix, ICCV 2019, equation 1.
    """
    first = cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)
    second = cross_entropy(logits, other, reduction="none", label_smoothing=smoothing)
    return ((1 - share) * first + share * second).mean()
