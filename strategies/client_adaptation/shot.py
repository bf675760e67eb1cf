"""SHOT: a client trains its own G on information maximization and labels of nearest centroids; F stays fixed.

**Source**: Liang et al., Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised
Domain Adaptation, ICML 2020, equations 3 to 7; optimizer, schedule and weights of its digits are those of
github.com/tim-learn/SHOT::

    1  repeat `epochs` times:
    2    c_k <- sum over x of p_k(x) G(x) / sum of p_k(x);  label = nearest centroid by cosine
    3    c_k <- mean G(x) of those labeled k;               label = nearest centroid by cosine
    4    a pass over the examples:
    5      G <- argmin  cls_weight CE(F(G(x)), label)  +  mean H(p) - H(mean p)

**Departures**: (1) examples of a batch are drawn with replacement; (2) the source model is the run's own: its F has no
weight normalization, and it was trained without label smoothing; (3) at the end batch norms have the mean statistics of
the client's examples, not a running mean over the last batches.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from fedlab.config.sections import NonNegativeFloat, PositiveFloat
from fedlab.losses.information_maximization import information_maximization
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import probabilities
from fedlab.optimizers import SGD
from fedlab.precision import outside_autocast
from fedlab.strategies.client_adaptation.spec import AdaptationSpec, Adapted, Client
from fedlab.strategies.client_adaptation.wrapper import as_strategy
from fedlab.strategies.source_only import SPEC as SOURCE_ONLY
from fedlab.training import train_steps

PHASE = "SHOT"


@dataclass(frozen=True)
class Options:
    """SHOT's options."""

    epochs: float = Field(30.0, gt=0, allow_inf_nan=False, description="passes over a client's examples")
    batch_size: int = Field(64, ge=2, description="examples a step")
    learning_rate: PositiveFloat = Field(
        1e-2, description="first learning rate of SGD; after t of T steps it is (1 + 10 t / T)^-0.75 of that"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum")
    weight_decay: NonNegativeFloat = Field(1e-3, description="weight decay of G")
    cls_weight: NonNegativeFloat = Field(0.1, description="weight of the cross-entropy with pseudo-labels")
    views: bool = Field(False, description="learn from random views of the examples, not from themselves")
    bn_images: int = Field(1000, ge=2, description="images that batch-norm statistics are taken from in the end")


def adapt(client: Client, options: Options) -> Adapted:
    """Train a client's G (lines 1 to 5)."""
    features, head = client.trainable_features(), client.frozen_head()
    optimizer = SGD(features.parameters(), options.learning_rate, options.momentum, options.weight_decay, nesterov=True)
    epoch = max(1, round(len(client.data) / options.batch_size))
    steps, done, labels = math.ceil(options.epochs * epoch), 0, torch.empty(0)

    def loss() -> Tensor:
        nonlocal done, labels
        if done % epoch == 0:
            with outside_autocast():
                labels = centroid_labels(features, head, client)
        optimizer.learning_rate = options.learning_rate * (1 + 10 * done / steps) ** -0.75
        done += 1
        rows = torch.randint(len(client.data), (options.batch_size,))
        x = client.view_of(rows) if options.views else client.inputs(rows)
        logits = head(features.train()(x))
        fit = cross_entropy(logits, labels[rows.to(client.device)])
        return options.cls_weight * fit + information_maximization(logits.softmax(1))

    train_steps(loss, optimizer, steps, name=PHASE, progress=client.progress)
    adapt_batchnorm(features, client.data, options.bn_images, 1.0, client.device)
    return Adapted(features.requires_grad_(False).eval())


@torch.no_grad()
def centroid_labels(features: nn.Module, head: nn.Module, client: Client) -> Tensor:
    """Return the labels (examples,) of lines 2 and 3."""
    z = encode(features, client.data, client.device)
    p = probabilities(head, z)
    present = one_hot(p.argmax(1), p.shape[1]).sum(0) > 0  # classes that no example has get no centroid
    first = nearest_centroids(z, p, present)
    return nearest_centroids(z, one_hot(first, p.shape[1]).to(p), present)


def nearest_centroids(z: Tensor, p: Tensor, present: Tensor) -> Tensor:
    """Return the class (examples,) of the nearest centroid by cosine.

    Parameters
    ----------
    z
        Features (examples, width); a 1 is appended to each, as in the published code.
    p
        Weights (examples, classes) with which they enter the classes' means.
    present
        Classes (classes,) that may be a label.
    """
    z = normalize(torch.cat([z, torch.ones_like(z[:, :1])], 1), dim=1)
    centroids = normalize(p.T @ z / p.sum(0).clamp_min(1e-8)[:, None], dim=1)
    similarity = (z @ centroids.T).masked_fill(~present, -math.inf)
    return similarity.argmax(1)


METHOD = AdaptationSpec(Options, adapt)

SPEC = as_strategy(SOURCE_ONLY, METHOD)
