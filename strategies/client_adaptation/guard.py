"""The choice between a client's old and new G without a label.

A client does not adapt if it has fewer than eleven examples for each class of the model: an example's ten neighbors,
over which labels are propagated, are then partly of other classes however good G is, and what follows would be judged
by few examples. With enough of them the new G is kept if it passes two tests:

- **Agreement**: the new G gives enough examples the class that the old G gives them, and the pseudo-label that training
  began with; the mean of both fractions. Where the old G knows little, few of its own labels survive. Pseudo-labels
  that do not fit the images are not learned from random views of them, and are replaced by others on the way.
- **Information**: the mutual information between predictions for two random views of one example (Ji et al., Invariant
  Information Clustering, ICCV 2019) did not fall. It is 0 for constant or random predictions, and log(classes) for
  certain and balanced ones that do not depend on the view. This finds a G that has collapsed, and not one that is
  certain, balanced and wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedlab.metrics import AUXILIARY_ORDER, Metric
from fedlab.models.batchnorm_stats import encode
from fedlab.models.feature_classifier import probabilities
from fedlab.strategies.client_adaptation.spec import Adapted, Client

ADAPTED = "adapted"
BATCH = 500  # examples per forward pass without gradients

GUARD_METRICS = (
    Metric(
        ADAPTED,
        "new G kept",
        order=AUXILIARY_ORDER,
        role="auxiliary",
        when_zero="kept the features that were sent, since new ones looked worse or examples are too few (the guard)",
    ),
    Metric("agreement", "agreement with labels known before", order=AUXILIARY_ORDER, role="auxiliary"),
    Metric("information_old", "information between views, old G", order=AUXILIARY_ORDER, role="auxiliary"),
    Metric("information_new", "information between views, new G", order=AUXILIARY_ORDER, role="auxiliary"),
)


@torch.no_grad()
def too_few(client: Client, per_class: int) -> bool:
    """Return whether a client has fewer than so many examples for each class of its model."""
    first = probabilities(client.head, encode(client.features, client.data.subsample(1), client.device))
    return len(client.data) < per_class * first.shape[1]


def choose(
    old: nn.Module,
    new: nn.Module,
    head: nn.Module,
    client: Client,
    labels: Tensor,
    min_agreement: float,
    guard: bool = True,
) -> Adapted:
    """Return the new G, or the client's as it was sent, with the numbers by which it was chosen.

    Parameters
    ----------
    old, new
        G with which the first labels were made, and G after adaptation, both in evaluation mode.
    head
        F.
    client
        Data and views to look at.
    labels
        Pseudo-labels (examples,) that training began with.
    min_agreement
        Least agreement, the mean of two fractions of the examples: those that keep the class that the old G gives
        them, and those to which the new G gives their pseudo-label.
    guard
        False: return the new G whatever the numbers.
    """
    before, after = (view_information(features, head, client) for features in (old, new))
    known, classes = (
        probabilities(head, encode(features, client.data, client.device)).argmax(1) for features in (old, new)
    )
    agreement = float(torch.stack([classes == known, classes == labels]).double().mean())
    keep = not guard or (agreement >= min_agreement and after >= before)
    report = {
        ADAPTED: float(keep),
        "agreement": agreement,
        "information_old": before,
        "information_new": after,
    }
    return Adapted(new if keep else client.features, report)


@torch.no_grad()
def view_information(features: nn.Module, head: nn.Module, client: Client) -> float:
    """Return the mutual information in nats between predictions for two views of each of a client's examples."""
    joint: Tensor | float = 0.0
    for start in range(0, len(client.data), BATCH):
        rows = torch.arange(start, min(start + BATCH, len(client.data)))
        p, q = (probabilities(head, features.eval()(client.view_of(rows))).double() for _ in range(2))
        joint = joint + p.T @ q
    assert isinstance(joint, Tensor)
    return float(mutual_information(joint + joint.T))


def mutual_information(joint: Tensor) -> Tensor:
    """Return the mutual information in nats of a joint distribution (classes, classes), up to its scale; a scalar.

    Examples
    --------
    >>> float(mutual_information(torch.ones(2, 2)))
    0.0
    """
    p = joint / joint.sum()
    independent = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    return (p * (p.clamp_min(1e-12) / independent.clamp_min(1e-12)).log()).sum()
