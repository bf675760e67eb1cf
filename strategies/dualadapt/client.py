"""DualAdapt's client side: lines 5 to 9 of the pseudo-code, evaluation, and the model that a client predicts with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.schema import ClientTraining, Core, Flat, build
from fedlab.data.dataset import Examples
from fedlab.errors import DataError
from fedlab.losses.discrepancy import discrepancy
from fedlab.losses.propagation import propagate
from fedlab.models import gaussian_mixture
from fedlab.models.batchnorm_stats import adopt_statistics, encode
from fedlab.models.feature_classifier import (
    Average,
    OnRows,
    features_of,
    head_of,
    per_example,
    probabilities,
    some_rows,
)
from fedlab.strategies.dualadapt.mixtures import read_mixture, upload
from fedlab.strategies.dualadapt.shared import BATCH, CONTROL, HEAD, LAST, MIXTURE, ONLY_MIXTURE, START, Knobs
from fedlab.strategies.protocol import (
    ARRAYS,
    CONFIG,
    METRICS,
    ModelStates,
    arrays_of,
    client_dataset,
    drop_none,
    load,
    metrics_record,
)
from fedlab.training import resolve_device, train_steps
from fedlab.workload import Workload


def train(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Run lines 5 to 9 on one client; line 8 and the upload only if the server asks for the mixture alone.

    Returns
    -------
    RecordDict
        ``head``: F_l; ``mixture``: W_T and the quantiles of its log-likelihood; ``metrics``: ``loss``, ``entropy`` and
        ``discrepancy`` of the two heads on the client's own data, no label among them.
    """
    knobs, training = build(Knobs, "dualadapt", context.run_config), build(ClientTraining, "client", context.run_config)
    device = resolve_device(build(Core, "", context.run_config).device)
    data = client_dataset(workload, context, "train")
    model = load(workload.model(), arrays_of(message.content), device)
    z = client_features(model, data, knobs, device)  # (examples, width), once a round: G is frozen
    source, quantiles = read_mixture(arrays_of(message.content, MIXTURE), device)
    if only_mixture(message.content):
        mixture = fit_mixture(z, source, knobs, training)
        return RecordDict({MIXTURE: upload(mixture, z), METRICS: metrics_record({}, len(data))})
    start = None
    if START in message.content:
        start = load(deepcopy(head_of(model)), arrays_of(message.content, START), device)
    local, mixture, loss = adapt_head(head_of(model), z, source, quantiles, knobs, training, start)
    p, q = probabilities(head_of(model), z), probabilities(local, z)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(1).mean()
    metrics = drop_none(loss=loss, entropy=float(entropy), discrepancy=float(discrepancy(p, q).mean()))
    return RecordDict(
        {
            HEAD: ArrayRecord(local.state_dict()),
            MIXTURE: upload(mixture, z),
            METRICS: metrics_record(metrics, len(data)),
        }
    )


def adapt_head(
    head: nn.Module,
    z: Tensor,
    source: gaussian_mixture.Mixture,
    quantiles: Tensor,
    knobs: Knobs,
    training: ClientTraining,
    start: nn.Module | None = None,
) -> tuple[nn.Module, gaussian_mixture.Mixture, float | None]:
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

    Returns
    -------
    tuple
        F_l, W_T and the mean loss (None without steps).
    """
    local = deepcopy(start or head).requires_grad_(True).train()  # line 5
    p_global = probabilities(head, z)
    mean_probs = (p_global + probabilities(start, z)) / 2 if start else p_global
    labels = pseudo_labels(z, mean_probs, knobs)  # (examples,)
    weights = torch.ones(len(z), device=z.device)
    if knobs.client_weights:
        weights = gaussian_mixture.relative(gaussian_mixture.typicality(source.log_prob(z), quantiles)).to(z)
    mixture = RunningMixture(source, knobs.variance_floor)

    def loss() -> Tensor:  # line 7
        rows = sample_rows(z, training)
        value = local_loss(local(z[rows]), labels[rows], weights[rows], p_global[rows], knobs.client_discrepancy)
        mixture.update(z[rows])  # line 8
        return value

    optimizer = torch.optim.Adam(local.parameters(), training.learning_rate)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(training.steps, 1))
    mean = train_steps(loss, optimizer, training.steps, name="local head", after_step=plan.step)
    return local.requires_grad_(False).eval(), mixture.fitted(), mean


class RunningMixture:
    """W_T, fitted by stepwise EM from W_S, a batch at a time."""

    def __init__(self, source: gaussian_mixture.Mixture, variance_floor: float) -> None:
        self.statistics, self.variance_floor, self.steps = source.statistics(), variance_floor, 0

    def update(self, z: Tensor) -> None:
        """Take one EM step on a batch z (batch, width)."""
        batch = gaussian_mixture.statistics(self.fitted(), z)
        self.statistics = gaussian_mixture.update(self.statistics, batch, gaussian_mixture.schedule(self.steps))
        self.steps += 1

    def fitted(self) -> gaussian_mixture.Mixture:
        """Return the mixture after the steps so far."""
        return gaussian_mixture.from_statistics(self.statistics, self.variance_floor)


def fit_mixture(
    z: Tensor, source: gaussian_mixture.Mixture, knobs: Knobs, training: ClientTraining
) -> gaussian_mixture.Mixture:
    """Fit W_T alone (line 8), with the same steps as in training, so that mixtures of late joiners are comparable."""
    mixture = RunningMixture(source, knobs.variance_floor)
    for _ in range(training.steps):
        mixture.update(z[sample_rows(z, training)])
    return mixture.fitted()


def sample_rows(z: Tensor, training: ClientTraining) -> Tensor:
    """Return the row indices (batch,) of one local step, drawn with replacement."""
    return torch.randint(len(z), (training.batch,)).to(z.device)


def local_loss(logits: Tensor, labels: Tensor, weights: Tensor, p_global: Tensor, discrepancy_weight: float) -> Tensor:
    """Return the loss of line 7, the batch mean of w CE(F_l, pseudo-label) - discrepancy_weight * d(F_g, F_l).

    Parameters
    ----------
    logits, p_global
        Logits of F_l and probabilities of F_g (batch, classes).
    labels, weights
        Pseudo-labels and example weights w (batch,).
    """
    fit = weights * cross_entropy(logits, labels, reduction="none")
    return (fit - discrepancy_weight * discrepancy(p_global, logits.softmax(1))).mean()


@torch.no_grad()
def pseudo_labels(z: Tensor, p: Tensor, knobs: Knobs) -> Tensor:
    """Return labels (examples,) for the local head: argmax p, optionally propagated over neighbors and class-balanced.

    Parameters
    ----------
    z, p
        Features (examples, width) and probabilities (examples, classes).
    """
    if knobs.pseudo_labels == "propagated":
        p = propagate(z, p, knobs.neighbours)
    return (p / p.sum(0).clamp_min(1e-6) ** knobs.balance).argmax(1)


def evaluate(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Return the metrics of every predictor on the client's test data, each with the predictor's name appended."""
    knobs = build(Knobs, "dualadapt", context.run_config)
    device = resolve_device(build(Core, "", context.run_config).device)
    test = client_dataset(workload, context, "test")

    def head_and_features(record: str, adapted: bool = True) -> tuple[nn.Module, Examples]:
        model = load(workload.model(), arrays_of(message.content, record), device)
        if adapted:
            own = client_dataset(workload, context, "train")
            adopt_statistics(features_of(model), own, knobs.statistics_images, knobs.own_statistics, device)
        z = encode(features_of(model), test, device, BATCH)
        return head_of(model), Examples({**test.columns, "x": per_example(z, len(test))})

    def measure(head: nn.Module, data: Examples) -> dict[str, float]:
        return workload.evaluate(OnRows(head), data)

    heads = message.content
    metrics: dict[str, float] = {}
    global_head, data = head_and_features(ARRAYS)
    metrics |= named("global", measure(global_head, data))
    if HEAD in heads:
        local = load(deepcopy(global_head), arrays_of(message.content, HEAD), device)
        metrics |= named("local", measure(local, data)) | named("average", measure(Average(global_head, local), data))
        if LAST in heads:
            last_head, last_data = head_and_features(LAST)
            metrics |= named("last", measure(Average(last_head, local), last_data))
    if CONTROL in heads:
        metrics |= named("source_only", measure(*head_and_features(CONTROL, adapted=False)))
    return RecordDict({METRICS: metrics_record(metrics, len(test))})


def named(name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return a predictor's metrics, without its loss, with its name appended to theirs."""
    return {f"{metric}_{name}": value for metric, value in metrics.items() if metric != "loss"}


def prediction_states(workload: Workload, message: Message, context: Context) -> ModelStates:
    """Return the arrays that this client predicts with: G with its own statistics, F_g, and its F_l if it has one."""
    local = arrays_of(message.content, HEAD) if HEAD in message.content else None
    own = client_dataset(workload, context, "train")
    return with_local_stats(workload, arrays_of(message.content), local, own, context.run_config)


def states_from_checkpoint(
    workload: Workload, checkpoint: Mapping[str, Any], partition: int, flat: Flat
) -> ModelStates:
    """Return the same from a checkpoint; with the source's statistics if the client's data is not on this machine."""
    own = None
    with suppress(DataError):
        own = workload.data(partition, "train")
    return with_local_stats(workload, checkpoint[ARRAYS], checkpoint["strategy"]["heads"].get(partition), own, flat)


def with_local_stats(
    workload: Workload,
    arrays: Mapping[str, Tensor],
    local: Mapping[str, Tensor] | None,
    own: Examples | None,
    flat: Flat,
) -> ModelStates:
    """Return G and F_g with batch-norm statistics of ``own`` examples, and F_l, as states by record name."""
    knobs, device = build(Knobs, "dualadapt", flat), resolve_device(build(Core, "", flat).device)
    model = load(workload.model(), arrays, device)
    if own is not None:
        adopt_statistics(features_of(model), own, knobs.statistics_images, knobs.own_statistics, device)
    return {ARRAYS: model.state_dict(), **({HEAD: local} if local is not None else {})}


def predictor(workload: Workload, states: ModelStates) -> nn.Module:
    """Return the module that maps ``x`` to log-probabilities (batch, classes): F_g and F_l averaged, on G."""
    model = load(workload.model(), states[ARRAYS], torch.device("cpu"))
    local = load(deepcopy(head_of(model)), states.get(HEAD, head_of(model).state_dict()), torch.device("cpu"))
    return nn.Sequential(features_of(model), Average(head_of(model), local)).eval()


def client_features(model: nn.Module, data: Examples, knobs: Knobs, device: torch.device) -> Tensor:
    """Return a random subset of a client's features (rows, width), under G with the client's own statistics."""
    adopt_statistics(features_of(model), data, knobs.statistics_images, knobs.own_statistics, device)
    return some_rows(encode(features_of(model), data, device, BATCH), knobs.client_rows)


def only_mixture(content: RecordDict) -> bool:
    """Return True if a message asks for the client's mixture alone."""
    config = content[CONFIG]
    return isinstance(config, ConfigRecord) and bool(config.get(ONLY_MIXTURE, False))
