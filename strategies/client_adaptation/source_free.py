"""Personalized source-free adaptation: a client trains its own G on its unlabeled data and keeps it.

**Source**: the parts are published, their combination is ours. Fixed head and information maximization: Liang et al.,
SHOT, ICML 2020. Labels of neighbors and strong views: Chen et al., AdaContrast, CVPR 2022. Propagation over the graph
of neighbors: Iscen et al., CVPR 2019. Class balance: Asano et al., ICLR 2020. Moving teacher: Tarvainen and Valpola,
Mean Teacher, NeurIPS 2017::

    1  G, teacher <- the G that was sent, with batch-norm statistics moved towards the client's own; F stays fixed
    2  every label_every steps:
    3    the teacher's batch-norm statistics <- the client's own (from the second time on)
    4    q <- balance(propagate(balance(F(teacher(x)))))  for all x;  label = argmax q
    5    w = 1 for the `confident` part of each class that q is surest of, else 0
    6  every step:  x' = random view of a batch
    7    G <- argmin  mean of w CE(F(G(x')), label)  +  information * (mean H(p) - H(mean p))
    8    teacher <- teacher_ema * teacher + (1 - teacher_ema) * G
    9  G <- interpolation * G + (1 - interpolation) * the G that was sent; its batch-norm statistics <- the client's own

Batch norms are in training mode in line 7. The client predicts with G, not with the teacher.

**Interpolation** of weights (line 9; 1: none) is WiSE-FT (Wortsman et al., CVPR 2022): where training on wrong labels
loses accuracy, part of the way loses less.

**The guard** (``guard``) keeps the G that was sent where the new one looks worse without a label, see ``guard.py``.

**Metrics**: see ``wrapper.py``.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.lr_schedules import cosine_factor
from fedlab.config.sections import NonNegativeFloat, PositiveFloat
from fedlab.cuda_graphs import GraphedLoss
from fedlab.data.dataset import Batch
from fedlab.data.pinned import send
from fedlab.losses.class_balance import sinkhorn
from fedlab.losses.information_maximization import information_maximization
from fedlab.losses.propagation import propagate_labels
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import probabilities
from fedlab.optimizers import Adam
from fedlab.precision import outside_autocast
from fedlab.strategies.client_adaptation.guard import ADAPTED, GUARD_METRICS, choose, too_few
from fedlab.strategies.client_adaptation.spec import AdaptationSpec, Adapted, Client
from fedlab.strategies.client_adaptation.wrapper import as_strategy
from fedlab.strategies.source_only import SPEC as SOURCE_ONLY
from fedlab.training import MovingAverage, train_steps

PHASE = "source-free adaptation"


@dataclass(frozen=True)
class Options:
    """Options of personalized source-free adaptation; each ingredient has a switch."""

    steps: int = Field(480, ge=0, description="steps of a client on its own G; 0: only its batch-norm statistics")
    batch_size: int = Field(64, ge=2, description="examples a step")
    learning_rate: PositiveFloat = Field(1e-3, description="first learning rate of Adam, which falls to 0 by a cosine")
    weight_decay: NonNegativeFloat = Field(1e-4, description="weight decay of G")
    label_every: int = Field(60, ge=1, description="steps between two labelings by the teacher")
    teacher_ema: float = Field(0.99, ge=0, lt=1, description="decay a step of the teacher; 0: the teacher is G itself")
    num_neighbors: int = Field(10, ge=0, description="neighbors over which labels are propagated; 0: no propagation")
    balance_iterations: int = Field(5, ge=0, description="turns of Sinkhorn's scaling to equal classes; 0: no balance")
    confident: float = Field(0.8, gt=0, le=1, description="fraction of each pseudo-class that is learned from")
    information: NonNegativeFloat = Field(1.0, description="weight of information maximization; 0: off")
    views: bool = Field(True, description="learn from random views of the examples, not from themselves")
    bn_adaptation: float = Field(0.75, ge=0, le=1, description="weight of own batch-norm statistics at the start")
    bn_images: int = Field(1000, ge=2, description="images that batch-norm statistics are taken from")
    max_examples: int = Field(
        12000, ge=2, description="examples of a client that are labeled and learned from, at most"
    )
    interpolation: float = Field(
        1.0, gt=0, le=1, description="weight of the trained G in the one that is kept; the rest is that which was sent"
    )
    guard: bool = Field(True, description="keep the G that was sent where the new one looks worse without a label")
    min_examples_per_class: int = Field(
        11,
        ge=0,
        description="of the guard: examples of a client for each class of the model, below which it does not adapt",
    )
    min_agreement: float = Field(
        0.74, ge=0, le=1, description="of the guard: least agreement of the new G with classes known before"
    )


def adapt(client: Client, options: Options) -> Adapted:
    """Train a client's G (lines 1 to 9) and return it, or the one that was sent where the guard says so."""
    client = replace(client, data=client.data.subsample(options.max_examples))
    if options.guard and too_few(client, options.min_examples_per_class):
        return Adapted(client.features, {ADAPTED: 0.0})
    old, new, labels = train_copy(client, options)
    found = choose(old, new, client.frozen_head(), client, labels.classes, options.min_agreement, options.guard)
    return replace(found, features=interpolated(old, new, client, options)) if found.features is new else found


def train_copy(client: Client, options: Options) -> tuple[nn.Module, nn.Module, PseudoLabels]:
    """Run lines 1 to 9 on a copy of G.

    Returns
    -------
    tuple of Module, Module, PseudoLabels
        G of line 1 and, without interpolation, of line 9, both in evaluation mode, and the labels that training began
        with.
    """
    head, old = client.frozen_head(), client.trainable_features()
    adapt_batchnorm(old, client.data, options.bn_images, options.bn_adaptation, client.device)  # line 1
    labels = label(old, head, client, options)
    new = train_features(deepcopy(old), head, client, options, labels)
    return old.requires_grad_(False).eval(), new, labels


def train_features(
    features: nn.Module, head: nn.Module, client: Client, options: Options, labels: PseudoLabels
) -> nn.Module:
    """Run lines 2 to 9 on G in place, from labels that it made before, and return it in evaluation mode."""
    teacher = deepcopy(features).requires_grad_(False)
    optimizer, done = Adam(features.parameters(), options.learning_rate, options.weight_decay), 0

    def loss_of(features: nn.Module, batch: Batch) -> Tensor:
        return adaptation_loss(head(features(batch["x"])), batch["classes"], batch["weights"], options.information)

    objective = GraphedLoss(loss_of, features, client.cuda_graphs)

    def loss() -> Tensor:
        nonlocal labels, done
        if done and done % options.label_every == 0:
            with outside_autocast():
                adapt_batchnorm(teacher, client.data, options.bn_images, 1.0, client.device)  # line 3
                labels = label(teacher, head, client, options)
        optimizer.learning_rate = options.learning_rate * cosine_factor(0.0, done + 1, options.steps + 1)
        done += 1
        rows = torch.randint(len(client.data), (options.batch_size,))
        x = client.view_of(rows) if options.views else client.inputs(rows)
        rows = send(rows, client.device)
        features.train()
        return objective({"x": x, "classes": labels.classes[rows], "weights": labels.weights[rows]})

    train_steps(
        loss,
        optimizer,
        options.steps,
        name=PHASE,
        progress=client.progress,
        after_step=MovingAverage(teacher, features, options.teacher_ema).update,
    )
    adapt_batchnorm(features, client.data, options.bn_images, 1.0, client.device)  # line 9
    return features.requires_grad_(False).eval()


@torch.no_grad()
def interpolated(old: nn.Module, new: nn.Module, client: Client, options: Options) -> nn.Module:
    """Return G of line 9 in evaluation mode, from those of line 1 and of the last step; they are not changed."""
    if options.interpolation == 1:
        return new
    between = deepcopy(new)
    for mine, theirs in zip(between.parameters(), old.parameters(), strict=True):
        mine.lerp_(theirs, 1 - options.interpolation)
    adapt_batchnorm(between, client.data, options.bn_images, 1.0, client.device)
    return between.eval()


@plain_dataclass(frozen=True)
class PseudoLabels:
    """Classes (examples,) and weights (examples,), 1 for those to learn from and 0 for the others."""

    classes: Tensor
    weights: Tensor


@torch.no_grad()
def label(teacher: nn.Module, head: nn.Module, client: Client, options: Options) -> PseudoLabels:
    """Return the labels of lines 4 and 5 for all of a client's examples."""
    z = encode(teacher, client.data, client.device)
    q = sinkhorn(probabilities(head, z), options.balance_iterations)
    if options.num_neighbors:
        q = sinkhorn(propagate_labels(z, q, options.num_neighbors), options.balance_iterations)
    confidence, classes = q.max(1)
    return PseudoLabels(classes, most_confident(confidence, classes, options.confident))


def most_confident(confidence: Tensor, classes: Tensor, fraction: float) -> Tensor:
    """Return weights (examples,): 1 for the given fraction of each class with the largest confidence, else 0.

    Examples
    --------
    >>> most_confident(torch.tensor([0.9, 0.5, 0.7, 0.6]), torch.tensor([0, 0, 0, 1]), 0.5)
    tensor([1., 0., 1., 1.])
    """
    weights = torch.zeros_like(confidence)
    for number in range(int(classes.max()) + 1):
        rows = (classes == number).nonzero()[:, 0]
        kept = confidence[rows].argsort(descending=True)[: math.ceil(fraction * len(rows))]
        weights[rows[kept]] = 1.0
    return weights


def adaptation_loss(logits: Tensor, classes: Tensor, weights: Tensor, information: float) -> Tensor:
    """Return the loss of line 7, a scalar.

    Parameters
    ----------
    logits
        Of a batch of views (batch, classes).
    classes, weights
        Pseudo-labels (batch,) and their weights (batch,).
    information
        Weight of information maximization.
    """
    fit = (weights * cross_entropy(logits, classes, reduction="none")).sum() / weights.sum().clamp_min(1.0)
    return fit + information * information_maximization(logits.softmax(1)) if information else fit


METHOD = AdaptationSpec(Options, adapt, GUARD_METRICS)

SPEC = as_strategy(SOURCE_ONLY, METHOD)
