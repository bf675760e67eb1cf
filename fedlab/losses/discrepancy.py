"""The discrepancy of two classifiers, large where at least one of them fails on a target example.

**Source**: Saito et al., Maximum Classifier Discrepancy for Unsupervised Domain Adaptation, CVPR 2018, equation 9.

**Departures**: (1) the sum over classes, as DualAdapt's specification has it, not the mean: a factor of the number of
classes.
"""

from __future__ import annotations

from torch import Tensor


def discrepancy(p: Tensor, q: Tensor) -> Tensor:
    """Return d(p, q) = sum over classes of |p - q|, in [0, 2].

    Parameters
    ----------
    p, q
        Class probabilities (batch, classes, ...).

    Returns
    -------
    Tensor
        One value for each example, or each pixel: (batch, ...).
    """
    return (p - q).abs().sum(1)
