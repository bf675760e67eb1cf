"""DualAdapt's client side: lines 5 to 9 of the pseudo-code."""

from __future__ import annotations

from copy import deepcopy

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.schema import ClientConfig
from fedlab.data.dataset import ArrayDataset
from fedlab.losses.discrepancy import discrepancy
from fedlab.losses.propagation import propagate_labels
from fedlab.models import conformal, em, gaussian_mixture
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import features_of, head_of, probabilities, subsample_rows
from fedlab.optimizers import Adam, cosine_rates
from fedlab.strategies.dualadapt.mixtures import read_mixture, upload
from fedlab.strategies.dualadapt.private import release_of, synthesize
from fedlab.strategies.dualadapt.shared import BATCH, HEAD, MIXTURE, ONLY_MIXTURE, START, Options
from fedlab.strategies.protocol import (
    CONFIG,
    METRICS,
    ClientContext,
    arrays_of,
    client_dataset,
    drop_none,
    load,
    metrics_record,
    tensor_record,
)
from fedlab.training import train_steps
from fedlab.workload import Workload


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Run lines 5 to 9 on one client; line 8 and the upload only if the server asks for the mixture alone.

    Returns
    -------
    RecordDict
        ``head``: F_l; ``mixture``: W_T and the quantiles of its log-likelihood; ``metrics``: ``loss``, ``entropy`` and
        ``discrepancy`` of the two heads on the client's own data, no label among them.
    """
    options, training = context.config.strategy, context.config.client
    device = context.device
    data = client_dataset(workload, context, "train")
    model = load(workload.model(), arrays_of(message.content), device)
    source, quantiles = read_mixture(arrays_of(message.content, MIXTURE), device)
    start = None
    if START in message.content:
        start = load(deepcopy(head_of(model)), arrays_of(message.content, START), device)
    targets, examples = None, len(data)
    if release := release_of(context.config):
        secret = context.config.secret_noise
        synthetic = synthesize(model, data, source, release, secret=secret, device=device, start=start)
        z, targets, examples = synthetic.features, synthetic.targets, synthetic.examples
    else:
        z = client_features(model, data, options, device)  # (examples, width), once a round: G is frozen
    if only_mixture(message.content):
        mixture = fit_mixture(z, source, options, training)
        return RecordDict({MIXTURE: upload(mixture, z), METRICS: metrics_record({}, examples)})
    local, mixture, loss = adapt_head(head_of(model), z, source, quantiles, options, training, start, targets)
    p, q = probabilities(head_of(model), z), probabilities(local, z)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(1).mean()
    metrics = drop_none(loss=loss, entropy=float(entropy), discrepancy=float(discrepancy(p, q).mean()))
    return RecordDict(
        {
            HEAD: tensor_record(local.state_dict()),
            MIXTURE: upload(mixture, z),
            METRICS: metrics_record(metrics, examples),
        }
    )


def adapt_head(
    head: nn.Module,
    z: Tensor,
    source: gaussian_mixture.GaussianMixture,
    quantiles: Tensor,
    options: Options,
    training: ClientConfig,
    start: nn.Module | None = None,
    targets: Tensor | None = None,
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

    Returns
    -------
    tuple
        F_l, W_T and the mean loss (None without steps).
    """
    local = deepcopy(start or head).requires_grad_(True).train()  # line 5
    p_global = probabilities(head, z)
    mean_probs = (p_global + probabilities(start, z)) / 2 if start else p_global
    labels = pseudo_labels(z, mean_probs, options) if targets is None else targets
    weights = torch.ones(len(z), device=z.device)
    if options.client_weights:
        weights = conformal.mean_normalized(conformal.conformal_p_value(source.log_prob(z), quantiles)).to(z)
    mixture = RunningMixture(source, options.variance_floor)

    def loss() -> Tensor:  # line 7
        rows = sample_rows(z, training)
        value = local_loss(local(z[rows]), labels[rows], weights[rows], p_global[rows], options.client_discrepancy)
        mixture.update(z[rows])  # line 8
        return value

    steps = training.local_steps(len(z))
    rates, optimizer = cosine_rates(training.learning_rate, steps), Adam(local.parameters(), training.learning_rate)

    def next_rate() -> None:
        optimizer.learning_rate = next(rates, 0.0)

    next_rate()
    mean = train_steps(loss, optimizer, steps, name="local head", after_step=next_rate)
    return local.requires_grad_(False).eval(), mixture.fitted(), mean


class RunningMixture:
    """W_T, fitted by stepwise EM from W_S, a batch at a time."""

    def __init__(self, source: gaussian_mixture.GaussianMixture, variance_floor: float) -> None:
        self.statistics, self.variance_floor, self.steps = source.statistics(), variance_floor, 0

    def update(self, z: Tensor) -> None:
        """Update the mixture by one EM step on a batch z (batch, width)."""
        batch = em.e_step(self.fitted(), z)
        self.statistics = em.blend(self.statistics, batch, em.robbins_monro_step(self.steps))
        self.steps += 1

    def fitted(self) -> gaussian_mixture.GaussianMixture:
        """Return the mixture after the steps so far."""
        return em.m_step(self.statistics, self.variance_floor)


def fit_mixture(
    z: Tensor, source: gaussian_mixture.GaussianMixture, options: Options, training: ClientConfig
) -> gaussian_mixture.GaussianMixture:
    """Fit W_T alone (line 8), with the same steps as in training, so that mixtures of late joiners are comparable."""
    mixture = RunningMixture(source, options.variance_floor)
    for _ in range(training.local_steps(len(z))):
        mixture.update(z[sample_rows(z, training)])
    return mixture.fitted()


def sample_rows(z: Tensor, training: ClientConfig) -> Tensor:
    """Return the row indices (batch,) of one local step, drawn with replacement."""
    return torch.randint(len(z), (training.batch_size,)).to(z.device)


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


@torch.no_grad()
def pseudo_labels(z: Tensor, p: Tensor, options: Options) -> Tensor:
    """Return labels (examples,) for the local head: argmax p, optionally propagated over neighbors and class-balanced.

    Parameters
    ----------
    z, p
        Features (examples, width) and probabilities (examples, classes).
    """
    if options.pseudo_labels == "propagated":
        p = propagate_labels(z, p, options.num_neighbors)
    return (p / p.sum(0).clamp_min(1e-6) ** options.class_balance).argmax(1)


def client_features(model: nn.Module, data: ArrayDataset, options: Options, device: torch.device) -> Tensor:
    """Return a random subset of a client's features (rows, width), under G with the client's own statistics."""
    adapt_batchnorm(features_of(model), data, options.bn_images, options.bn_adaptation, device)
    return subsample_rows(encode(features_of(model), data, device, BATCH), options.max_features)


def only_mixture(content: RecordDict) -> bool:
    """Return True if a message asks for the client's mixture alone."""
    config = content[CONFIG]
    return isinstance(config, ConfigRecord) and bool(config.get(ONLY_MIXTURE, False))
