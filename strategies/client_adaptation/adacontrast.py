"""AdaContrast: a client trains its own model on labels of its neighbors, a contrast to other classes, and diversity.

**Source**: Chen et al., Contrastive Test-Time Adaptation, CVPR 2022, equations 1 to 6; github.com/DianCh/AdaContrast::

    1  momentum model <- model;  bank <- features and probabilities of it for every example
    2  every step, on a batch x:  weak view x_w, strong views x_q, x_k
    3    label = argmax of the mean probabilities of x_w's nearest neighbors in the bank
    4    G <- argmin  CE(F(G(x_q)), label)  +  InfoNCE(G(x_q), momentum G(x_k); bank entries of other labels)
                      -  H(mean of F(G(x_q)))
    5    momentum model <- momentum * momentum model + (1 - momentum) * model;  bank <- its features of x_w

**Departures**: (1) F stays fixed, so that a client's state is a G as with the other methods; (2) Adam with a cosine
instead of SGD at 2e-4, which is meant for a network trained on ImageNet; (3) the bank has every example from the start
and no queue; negatives of InfoNCE are its features; (4) weak and strong views are the workload's.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fedlab.config.lr_schedules import cosine_factor
from fedlab.config.sections import NonNegativeFloat, PositiveFloat
from fedlab.losses.information_maximization import entropy
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import probabilities
from fedlab.optimizers import Adam
from fedlab.precision import outside_autocast
from fedlab.strategies.client_adaptation.spec import AdaptationSpec, Adapted, Client
from fedlab.strategies.client_adaptation.wrapper import as_strategy
from fedlab.strategies.source_only import SPEC as SOURCE_ONLY
from fedlab.training import MovingAverage, train_steps

PHASE = "AdaContrast"


@dataclass(frozen=True)
class Options:
    """AdaContrast's options."""

    steps: int = Field(240, ge=0, description="steps of a client on its own G")
    batch_size: int = Field(64, ge=2, description="examples a step")
    learning_rate: PositiveFloat = Field(1e-3, description="first learning rate of Adam, which falls to 0 by a cosine")
    weight_decay: NonNegativeFloat = Field(1e-4, description="weight decay of G")
    momentum: float = Field(0.999, ge=0, lt=1, description="decay a step of the momentum model")
    num_neighbors: int = Field(10, ge=1, description="neighbors whose probabilities are averaged")
    temperature: PositiveFloat = Field(0.07, description="temperature of InfoNCE")
    contrast: NonNegativeFloat = Field(1.0, description="weight of InfoNCE; 0: off")
    diversity: NonNegativeFloat = Field(1.0, description="weight of the entropy of the mean prediction; 0: off")
    bn_images: int = Field(1000, ge=2, description="images that batch-norm statistics are taken from in the end")


class Bank:
    """Normalized features (examples, width) and probabilities (examples, classes) of the momentum model."""

    def __init__(self, z: Tensor, p: Tensor) -> None:
        self.z, self.p = normalize(z, dim=1), p

    def labels(self, z: Tensor, num_neighbors: int) -> Tensor:
        """Return the classes (batch,) of line 3 for features (batch, width)."""
        k = min(num_neighbors, len(self.z))
        nearest = (normalize(z, dim=1) @ self.z.T).topk(k, dim=1).indices  # (batch, k)
        return self.p[nearest].mean(1).argmax(1)

    def update(self, rows: Tensor, z: Tensor, p: Tensor) -> None:
        """Replace the entries of some examples (batch,)."""
        self.z[rows], self.p[rows] = normalize(z, dim=1), p


def adapt(client: Client, options: Options) -> Adapted:
    """Train a client's G (lines 1 to 5)."""
    features, head = client.trainable_features(), client.frozen_head()
    momentum = deepcopy(features).requires_grad_(False)
    z = encode(momentum, client.data, client.device)
    bank, done = Bank(z, probabilities(head, z)), 0
    optimizer = Adam(features.parameters(), options.learning_rate, options.weight_decay)

    def loss() -> Tensor:
        nonlocal done
        optimizer.learning_rate = options.learning_rate * cosine_factor(0.0, done + 1, options.steps + 1)
        done += 1
        rows = torch.randint(len(client.data), (options.batch_size,))
        weak, query, key = client.weak_view_of(rows), client.view_of(rows), client.view_of(rows)
        rows = rows.to(client.device)
        with torch.no_grad(), outside_autocast():
            labels = bank.labels(features.eval()(weak), options.num_neighbors)
            keys = momentum.train()(key)
            known = momentum.eval()(weak)
            bank.update(rows, known, probabilities(head, known))
        z = features.train()(query)
        logits = head(z)
        value = cross_entropy(logits, labels) - options.diversity * entropy(logits.softmax(1).mean(0))
        if options.contrast:
            value = value + options.contrast * info_nce(z, keys, labels, bank, options.temperature)
        return value

    train_steps(
        loss,
        optimizer,
        options.steps,
        name=PHASE,
        progress=client.progress,
        after_step=MovingAverage(momentum, features, options.momentum).update,
    )
    adapt_batchnorm(features, client.data, options.bn_images, 1.0, client.device)
    return Adapted(features.requires_grad_(False).eval())


def info_nce(z: Tensor, keys: Tensor, labels: Tensor, bank: Bank, temperature: float) -> Tensor:
    """Return InfoNCE of queries against their keys, a scalar; negatives are bank entries with another label.

    Parameters
    ----------
    z, keys
        Features (batch, width) of both strong views.
    labels
        Pseudo-labels (batch,) of the queries.
    """
    q = normalize(z, dim=1)
    positive = (q * normalize(keys, dim=1)).sum(1, keepdim=True)  # (batch, 1)
    same = labels[:, None] == bank.p.argmax(1)  # (batch, examples)
    negative = (q @ bank.z.T).masked_fill(same, -torch.inf)
    logits = torch.cat([positive, negative], 1) / temperature
    return cross_entropy(logits, torch.zeros_like(labels))


METHOD = AdaptationSpec(Options, adapt)

SPEC = as_strategy(SOURCE_ONLY, METHOD)
