"""NT-Xent, the contrastive loss of SimCLR: two views of one image attract, all other views of the batch repel.

For a batch of n images with embeddings z_1..z_n of one view and z_(n+1)..z_(2n) of the other, p(i) the other view of
i's image and s(i, j) the cosine of z_i and z_j::

    L = 1/(2n) * sum over i of  -log  exp(s(i, p(i)) / t) / sum over j != i of exp(s(i, j) / t)

**Source**: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, equation 1.
STARTUP (Phoo and Hariharan, ICLR 2021) uses it with t = 1.

>>> z = torch.eye(2)
>>> round(float(nt_xent(z, z)), 4)  # cosines: 1 to the other view, 0 to the two views of the other image
0.5514
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def nt_xent(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean loss over both views of every image, a scalar.

    Parameters
    ----------
    first, second
        Embeddings of two views of the same images, each (batch, width); only their direction matters.
    temperature
        Divisor of the cosines, > 0.

    Raises
    ------
    ValueError
        When the views differ in shape, or there is only one image, so that nothing repels.
    """
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise ValueError(
            f"two views need one shape (batch >= 2, width), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    z = normalize(torch.cat([first, second]), dim=1)  # (2 batch, width)
    cosines = (z @ z.T) / temperature  # (2 batch, 2 batch)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    partner = torch.arange(len(z), device=z.device).roll(len(first))
    return cross_entropy(cosines.masked_fill(own, float("-inf")), partner)
