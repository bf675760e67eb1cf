"""DualAdapt's client half: lines 5 to 9 of the pseudo-code, testing, and what predicts afterwards."""

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
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import DataError
from fedlab.losses.discrepancy import discrepancy
from fedlab.losses.propagation import propagate_labels
from fedlab.models import conformal, em, gaussian_mixture
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import (
    EnsembleHead,
    FlattenRows,
    features_of,
    head_of,
    group_rows,
    probabilities,
    subsample_rows,
)
from fedlab.strategies.dualadapt.mixtures import read_mixture, upload
from fedlab.strategies.dualadapt.shared import BATCH, CONTROL, HEAD, LAST, MIXTURE, ONLY_MIXTURE, START, Knobs
from fedlab.strategies.protocol import ARRAYS, CONFIG, METRICS, States, arrays_of, known, load, metrics_record, own_data
from fedlab.training import optimise, pick_device
from fedlab.workload import Workload


def train(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Lines 5 to 9 on one client; of a newcomer that was asked for its mixture only, line 8 and the upload.

    Returns
    -------
    RecordDict
        ``head``: F_l; ``mixture``: W_T and the quantiles of its log-likelihood; ``metrics``: ``loss``, ``entropy`` and
        ``discrepancy`` of the two heads on the client's own data, no label among them.
    """
    knobs, training = build(Knobs, "dualadapt", context.run_config), build(ClientTraining, "client", context.run_config)
    device = pick_device(build(Core, "", context.run_config).device)
    data = own_data(workload, context, "train")
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
    metrics = known(loss=loss, entropy=float(entropy), discrepancy=float(discrepancy(p, q).mean()))
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
    source: gaussian_mixture.GaussianMixture,
    quantiles: Tensor,
    knobs: Knobs,
    training: ClientTraining,
    start: nn.Module | None = None,
) -> tuple[nn.Module, gaussian_mixture.GaussianMixture, float | None]:
    """Lines 5 to 8: F_l and W_T from F_g, W_S and the client's features.

    Parameters
    ----------
    head
        F_g; it is left as it is.
    z
        Target features (examples, width).
    source, quantiles
        W_S, and the sorted log-likelihoods (256,) of the source's own features under it.
    start
        A newcomer's: F_l begins here, and pseudo-labels are those of F_g and this head averaged.

    Returns
    -------
    tuple
        F_l, W_T and the mean loss.
    """
    local = deepcopy(start or head).requires_grad_(True).train()  # line 5
    p_global = probabilities(head, z)
    opinion = (p_global + probabilities(start, z)) / 2 if start else p_global
    labels = pseudo_labels(z, opinion, knobs)  # (examples,)
    weights = torch.ones(len(z), device=z.device)
    if knobs.client_weights:
        weights = conformal.mean_normalized(conformal.conformal_p_value(source.log_prob(z), quantiles)).to(z)
    mixture = RunningMixture(source, knobs.variance_floor)

    def loss() -> Tensor:  # line 7
        rows = draw(z, training)
        value = local_loss(local(z[rows]), labels[rows], weights[rows], p_global[rows], knobs.client_discrepancy)
        mixture.take(z[rows])  # line 8
        return value

    optimiser = torch.optim.Adam(local.parameters(), training.learning_rate)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(training.steps, 1))
    mean = optimise(loss, optimiser, training.steps, name="local head", after_step=plan.step)
    return local.requires_grad_(False).eval(), mixture.fitted(), mean


class RunningMixture:
    """W_T by stepwise EM from W_S, a batch at a time."""

    def __init__(self, source: gaussian_mixture.GaussianMixture, variance_floor: float) -> None:
        self.statistics, self.variance_floor, self.steps = source.statistics(), variance_floor, 0

    def take(self, z: Tensor) -> None:
        """One step on a batch (batch, width)."""
        batch = em.e_step(self.fitted(), z)
        self.statistics = em.blend(self.statistics, batch, em.robbins_monro_step(self.steps))
        self.steps += 1

    def fitted(self) -> gaussian_mixture.GaussianMixture:
        """The mixture so far."""
        return em.m_step(self.statistics, self.variance_floor)


def fit_mixture(
    z: Tensor, source: gaussian_mixture.GaussianMixture, knobs: Knobs, training: ClientTraining
) -> gaussian_mixture.GaussianMixture:
    """Line 8 alone, as often as with line 7: so a newcomer's mixture is estimated as those it is compared with."""
    mixture = RunningMixture(source, knobs.variance_floor)
    for _ in range(training.steps):
        mixture.take(z[draw(z, training)])
    return mixture.fitted()


def draw(z: Tensor, training: ClientTraining) -> Tensor:
    """Rows (batch,) of one local step, with replacement."""
    return torch.randint(len(z), (training.batch,)).to(z.device)


def local_loss(logits: Tensor, labels: Tensor, weights: Tensor, p_global: Tensor, apart: float) -> Tensor:
    """Line 7: mean over the batch of w CE(F_l, pseudo-label) - apart x d(F_g, F_l); logits (batch, classes)."""
    fit = weights * cross_entropy(logits, labels, reduction="none")
    return (fit - apart * discrepancy(p_global, logits.softmax(1))).mean()


@torch.no_grad()
def pseudo_labels(z: Tensor, p: Tensor, knobs: Knobs) -> Tensor:
    """Labels (examples,) for the local head: argmax F_g, if asked smoothed over neighbours and evened out by class."""
    if knobs.pseudo_labels == "propagated":
        p = propagate_labels(z, p, knobs.neighbours)
    return (p / p.sum(0).clamp_min(1e-6) ** knobs.balance).argmax(1)


def evaluate(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Metrics of global, local and averaged heads on the client's test data, of the last G, and of the control."""
    knobs = build(Knobs, "dualadapt", context.run_config)
    device = pick_device(build(Core, "", context.run_config).device)
    test = own_data(workload, context, "test")

    def tested(record: str, adapted: bool = True) -> tuple[nn.Module, ArrayDataset]:
        model = load(workload.model(), arrays_of(message.content, record), device)
        if adapted:
            own = own_data(workload, context, "train")
            adapt_batchnorm(features_of(model), own, knobs.statistics_images, knobs.own_statistics, device)
        z = encode(features_of(model), test, device, BATCH)
        return head_of(model), ArrayDataset({**test.columns, "x": group_rows(z, len(test))})

    def measure(head: nn.Module, data: ArrayDataset) -> dict[str, float]:
        return workload.evaluate(FlattenRows(head), data)

    heads = message.content
    metrics: dict[str, float] = {}
    global_head, data = tested(ARRAYS)
    metrics |= named("global", measure(global_head, data))
    if HEAD in heads:
        local = load(deepcopy(global_head), arrays_of(message.content, HEAD), device)
        metrics |= named("local", measure(local, data)) | named("average", measure(EnsembleHead(global_head, local), data))
        if LAST in heads:
            last_head, last_data = tested(LAST)
            metrics |= named("last", measure(EnsembleHead(last_head, local), last_data))
    if CONTROL in heads:
        metrics |= named("source_only", measure(*tested(CONTROL, adapted=False)))
    return RecordDict({METRICS: metrics_record(metrics, len(test))})


def named(name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """A predictor's metrics under its name, its loss left out."""
    return {f"{metric}_{name}": value for metric, value in metrics.items() if metric != "loss"}


def states(workload: Workload, message: Message, context: Context) -> States:
    """What predicts on this client: G with the client's own statistics and F_g, and its own F_l if it has one."""
    local = arrays_of(message.content, HEAD) if HEAD in message.content else None
    own = own_data(workload, context, "train")
    return kept(workload, arrays_of(message.content), local, own, context.run_config)


def recalled(workload: Workload, checkpoint: Mapping[str, Any], partition: int, flat: Flat) -> States:
    """The same from the server's checkpoint; G keeps the source's statistics where the client's data is not here."""
    own = None
    with suppress(DataError):
        own = workload.data(partition, "train")
    return kept(workload, checkpoint[ARRAYS], checkpoint["strategy"]["heads"].get(partition), own, flat)


def kept(
    workload: Workload,
    arrays: Mapping[str, Tensor],
    local: Mapping[str, Tensor] | None,
    own: ArrayDataset | None,
    flat: Flat,
) -> States:
    """G and F_g with the statistics of ``own`` images, and F_l."""
    knobs, device = build(Knobs, "dualadapt", flat), pick_device(build(Core, "", flat).device)
    model = load(workload.model(), arrays, device)
    if own is not None:
        adapt_batchnorm(features_of(model), own, knobs.statistics_images, knobs.own_statistics, device)
    return {ARRAYS: model.state_dict(), **({HEAD: local} if local is not None else {})}


def predictor(workload: Workload, states: States) -> nn.Module:
    """Inputs ``x`` to log-probabilities (batch, classes): F_g and F_l averaged, on G."""
    model = load(workload.model(), states[ARRAYS], torch.device("cpu"))
    local = load(deepcopy(head_of(model)), states.get(HEAD, head_of(model).state_dict()), torch.device("cpu"))
    return nn.Sequential(features_of(model), EnsembleHead(head_of(model), local)).eval()


def client_features(model: nn.Module, data: ArrayDataset, knobs: Knobs, device: torch.device) -> Tensor:
    """G's features (rows, width) of a client's images, normalised with its own statistics if asked; at most so many."""
    adapt_batchnorm(features_of(model), data, knobs.statistics_images, knobs.own_statistics, device)
    return subsample_rows(encode(features_of(model), data, device, BATCH), knobs.client_rows)


def only_mixture(content: RecordDict) -> bool:
    """Whether a message asks a newcomer for its mixture alone."""
    config = content[CONFIG]
    return isinstance(config, ConfigRecord) and bool(config.get(ONLY_MIXTURE, False))
