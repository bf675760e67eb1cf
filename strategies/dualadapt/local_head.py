"""A DualAdapt client's head and mixture, from its features: lines 5 to 8 of the pseudo-code."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.training_options import ClientConfig
from fedlab.cuda_graphs import GraphedLoss
from fedlab.data.dataset import Batch
from fedlab.data.pinned import send
from fedlab.losses.discrepancy import discrepancy
from fedlab.losses.propagation import propagate_many
from fedlab.models import conformal, em, gaussian_mixture
from fedlab.models.feature_classifier import probabilities
from fedlab.optimizers import Adam, cosine_rates
from fedlab.strategies.dualadapt.shared import Options
from fedlab.training import train_steps

PHASE = "local head"


def adapt_head(
    head: nn.Module,
    z: Tensor,
    source: gaussian_mixture.GaussianMixture,
    quantiles: Tensor,
    options: Options,
    training: ClientConfig,
    start: nn.Module | None = None,
    targets: Tensor | None = None,
    *,
    cuda_graphs: bool = False,
) -> tuple[nn.Module, gaussian_mixture.GaussianMixture, float | None]:
    """Fit F_l and W_T to the client's features, from F_g and W_S (lines 5 to 8).

    Parameters
    ----------
    head
        F_g, which is not changed.
    z
        Target features (examples, width).
    source, quantiles
        W_S, and the sorted log-likelihoods (256,) of the source's own features under it.
    start
        Initial head of a late joiner: F_l starts from it, and pseudo-labels are those of F_g and this head averaged.
    targets
        Labels (examples,) or class probabilities (examples, classes) that are known; None: pseudo-labels.
    cuda_graphs
        Compute the loss as a CUDA graph on a GPU.

    Returns
    -------
    tuple
        F_l, W_T and the mean loss (None without steps).
    """
    local = deepcopy(start or head).requires_grad_(True).train()  # line 5
    p_global, mean_probs = opinions(head, z, start)
    labels = pseudo_labels(z, mean_probs, options) if targets is None else targets
    weights = typicality(z, source, quantiles, options)
    both = HeadAndMixture(local, source, options.variance_floor)
    columns = {"z": z, "labels": labels, "weights": weights, "p_global": p_global}

    def loss_of(model: nn.Module, batch: Batch) -> Tensor:  # one CUDA graph on a GPU
        own = {name: column[batch["rows"]] for name, column in columns.items()}
        logits = local(own["z"])  # line 7
        value = local_loss(logits, own["labels"], own["weights"], own["p_global"], options.client_discrepancy)
        both.update(own["z"], batch["step_size"])  # line 8
        return value

    objective, steps = GraphedLoss(loss_of, both, cuda_graphs), training.local_steps(len(z))
    step_sizes = iter(em_step_sizes(steps, z.device))

    def loss() -> Tensor:
        return objective({"rows": sample_rows(z, training), "step_size": next(step_sizes)})

    rates, optimizer = cosine_rates(training.learning_rate, steps), Adam(local.parameters(), training.learning_rate)

    def next_rate() -> None:
        optimizer.learning_rate = next(rates, 0.0)

    next_rate()
    mean = train_steps(loss, optimizer, steps, name=PHASE, after_step=next_rate)
    return local.requires_grad_(False).eval(), both.fitted(), mean


def opinions(head: nn.Module, z: Tensor, start: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return the probabilities (examples, classes) of F_g, and those that pseudo-labels are made of."""
    p_global = probabilities(head, z)
    return p_global, (p_global + probabilities(start, z)) / 2 if start else p_global


def typicality(z: Tensor, source: gaussian_mixture.GaussianMixture, quantiles: Tensor, options: Options) -> Tensor:
    """Return the weights (examples,) of features (examples, width) in the loss, of mean 1."""
    if not options.client_weights:
        return torch.ones(len(z), device=z.device)
    return conformal.mean_normalized(conformal.conformal_p_value(source.log_prob(z), quantiles)).to(z)


class RunningMixture:
    """W_T, fitted by stepwise EM from W_S, a batch at a time; of one client or, stacked, of several."""

    def __init__(self, source: gaussian_mixture.GaussianMixture, variance_floor: float) -> None:
        self.statistics, self.variance_floor, self.steps = source.statistics(), variance_floor, 0

    def update(self, z: Tensor) -> None:
        """Update the mixture by one EM step on a batch z (..., batch, width)."""
        seen = self.steps > 0 and z.device.type != "cpu"  # later batches are of the same features; a GPU waits for none
        batch = em.e_step(self.fitted(), z, known_finite=seen)
        self.statistics = em.blend(self.statistics, batch, em.robbins_monro_step(self.steps))
        self.steps += 1

    def fitted(self) -> gaussian_mixture.GaussianMixture:
        """Return the mixture after the steps so far."""
        return em.m_step(self.statistics, self.variance_floor)


class HeadAndMixture(nn.Module):
    """F_l, and W_T as :class:`RunningMixture` fits it, whose statistics change in place: one model to a CUDA graph."""

    def __init__(self, head: nn.Module, source: gaussian_mixture.GaussianMixture, variance_floor: float) -> None:
        super().__init__()
        self.head, self.variance_floor = head, variance_floor
        for name, part in source.statistics()._asdict().items():
            self.register_buffer(name, part.clone())
        self._has_seen = False

    @property
    def statistics(self) -> gaussian_mixture.Statistics:
        """Running averages of W_T's sufficient statistics."""
        return gaussian_mixture.Statistics(*(getattr(self, name) for name in gaussian_mixture.Statistics._fields))

    def update(self, z: Tensor, step_size: Tensor) -> None:
        """Update W_T by one EM step on a batch z (batch, width), with a step size (), float64."""
        known_finite = self._has_seen and z.device.type != "cpu"  # as in a running mixture
        batch = em.e_step(self.fitted(), z, known_finite=known_finite)
        for running, new in zip(self.statistics, batch, strict=True):
            running.lerp_(new, step_size)
        self._has_seen = True

    def fitted(self) -> gaussian_mixture.GaussianMixture:
        """Return the mixture after the steps so far."""
        return em.m_step(self.statistics, self.variance_floor)


def em_step_sizes(steps: int, device: torch.device) -> Tensor:
    """Return the step sizes (steps,) of stepwise EM, float64, on a device."""
    return send(torch.tensor([em.robbins_monro_step(step) for step in range(steps)], dtype=torch.float64), device)


def fit_mixture(
    z: Tensor, source: gaussian_mixture.GaussianMixture, options: Options, training: ClientConfig
) -> gaussian_mixture.GaussianMixture:
    """Fit W_T alone (line 8), with the same steps as in training, so that mixtures of late joiners are comparable."""
    mixture = RunningMixture(source, options.variance_floor)
    for _ in range(training.local_steps(len(z))):
        mixture.update(z[sample_rows(z, training)])
    return mixture.fitted()


def sample_rows(z: Tensor, training: ClientConfig) -> Tensor:
    """Return the row indices (batch,) of one local step on features z, on their device."""
    return send(draw_rows(len(z), training), z.device)


def draw_rows(examples: int, training: ClientConfig) -> Tensor:
    """Return row indices (batch,) of one local step, drawn with replacement from torch's current random stream."""
    return torch.randint(examples, (training.batch_size,))


def local_loss(logits: Tensor, labels: Tensor, weights: Tensor, p_global: Tensor, discrepancy_weight: float) -> Tensor:
    """Return the loss of line 7, the batch mean of w CE(F_l, pseudo-label) - discrepancy_weight * d(F_g, F_l).

    Parameters
    ----------
    logits, p_global
        Logits of F_l and probabilities of F_g (batch, classes).
    labels, weights
        Pseudo-labels (batch,), or probabilities (batch, classes), and example weights w (batch,).
    """
    fit = weights * cross_entropy(logits, labels, reduction="none")
    return (fit - discrepancy_weight * discrepancy(p_global, logits.softmax(1))).mean()


def pseudo_labels(z: Tensor, p: Tensor, options: Options) -> Tensor:
    """Return labels (examples,) for the local head: argmax p, optionally propagated over neighbors and class-balanced.

    Parameters
    ----------
    z, p
        Features (examples, width) and probabilities (examples, classes).
    """
    (labels,) = pseudo_labels_of_many([z], [p], options)
    return labels


@torch.no_grad()
def pseudo_labels_of_many(z: Sequence[Tensor], p: Sequence[Tensor], options: Options) -> list[Tensor]:
    """Return :func:`pseudo_labels` of several clients."""
    if options.pseudo_labels == "propagated":
        p = propagate_many(z, p, options.num_neighbors)
    return [(own / own.sum(0).clamp_min(1e-6) ** options.class_balance).argmax(1) for own in p]
