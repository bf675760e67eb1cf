"""Model-contrastive loss: features should be nearer to those of one model than to those of another, for each input.

With z the features of an input, z_+ and z_- those of two other models, sim the cosine and tau a temperature:

    l = -log( exp(sim(z, z_+) / tau) / (exp(sim(z, z_+) / tau) + exp(sim(z, z_-) / tau)) )

It is log 2 where both models give the same features.

**Source**: Li et al., Model-Contrastive Federated Learning, CVPR 2021, equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy


def model_contrastive_loss(z: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """Return the mean loss over a batch, a scalar.

    Parameters
    ----------
    z, positive, negative
        Features (batch, ...) of the same inputs; all dimensions but the first are one vector.
    temperature
        Scale of the cosines, above 0.
    """
    rows = z.flatten(1)
    cosines = torch.stack([cosine_similarity(rows, other.flatten(1)) for other in (positive, negative)], 1)
    return cross_entropy(cosines / temperature, torch.zeros(len(rows), dtype=torch.long, device=rows.device))
