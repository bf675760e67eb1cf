"""The choice between a client's old and new G without a label.

A model is as good as it looks by the mutual information between its predictions for two random views of one example
(Ji et al., Invariant Information Clustering, ICCV 2019): 0 for constant or random predictions, log(classes) for certain
and balanced ones that do not depend on the view. The new G is kept where this did not fall. It tells a G that has
collapsed; a G that is certain, balanced and wrong it does not.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedlab.metrics import AUXILIARY_ORDER, Metric
from fedlab.models.batchnorm_stats import encode
from fedlab.models.feature_classifier import probabilities
from fedlab.strategies.client_adaptation.spec import Adapted, Client

Guard = Annotated[
    Literal["information", "off"],
    Field(
        description="keep the old G where the new one's predictions for two views share less information than the "
        "old one's; off: always take the new one"
    ),
]
BATCH = 500  # examples per forward pass without gradients

GUARD_METRICS = (
    Metric("adapted", "new G kept", order=AUXILIARY_ORDER, role="auxiliary"),
    Metric("agreement", "labels that stayed", order=AUXILIARY_ORDER, role="auxiliary"),
    Metric("information_old", "information between views, old G", order=AUXILIARY_ORDER, role="auxiliary"),
    Metric("information_new", "information between views, new G", order=AUXILIARY_ORDER, role="auxiliary"),
)


def choose(old: nn.Module, new: nn.Module, head: nn.Module, client: Client, guard: Guard) -> Adapted:
    """Return the G that looks better, with the numbers by which it was chosen.

    Parameters
    ----------
    old, new
        G before and after adaptation, in evaluation mode.
    head
        F.
    client
        Data and views to look at.
    """
    before, after = (view_information(features, head, client) for features in (old, new))
    keep = guard == "off" or after >= before
    labels = [probabilities(head, encode(features, client.data, client.device)).argmax(1) for features in (old, new)]
    report = {
        "adapted": float(keep),
        "agreement": float((labels[0] == labels[1]).double().mean()),
        "information_old": before,
        "information_new": after,
    }
    return Adapted(new if keep else old, report)


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
