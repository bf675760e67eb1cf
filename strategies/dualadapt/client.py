"""DualAdapt's client side: features, what ``local_head.py`` makes of them, and the answer (line 9)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor, nn

from fedlab.config.training_options import ClientConfig
from fedlab.data.dataset import ArrayDataset
from fedlab.losses.discrepancy import discrepancy
from fedlab.models import gaussian_mixture
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import features_of, head_of, probabilities, subsample_rows
from fedlab.privacy.accounting import Release
from fedlab.strategies.dualadapt.initial_head import initial_head
from fedlab.strategies.dualadapt.local_head import adapt_head, fit_mixture
from fedlab.strategies.dualadapt.mixtures import read_mixture, upload
from fedlab.strategies.dualadapt.private import plain_features, release_features, release_of
from fedlab.strategies.dualadapt.private_head import fit_private_head
from fedlab.strategies.dualadapt.shared import BATCH, CANDIDATE, HEAD, MIXTURE, ONLY_MIXTURE, START, Options
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
from fedlab.strategies.received_models import received_model
from fedlab.workload import Workload


@dataclass(frozen=True, eq=False)
class HeadWork:
    """The work of one client in one round, on features that are computed once, since G is frozen.

    Attributes
    ----------
    head
        F_g.
    z
        Target features (examples, width).
    source, quantiles
        W_S, and the sorted log-likelihoods (256,) of the source's own features under it.
    options, training
        Options of DualAdapt and of local training.
    start
        Initial head of a late joiner: F_l starts from it, and pseudo-labels are those of F_g and this head averaged.
    targets
        Labels (examples,) or class probabilities (examples, classes) that are known; None: pseudo-labels.
    examples
        Number of examples that the client reports.
    only_mixture
        True if the server asks a late joiner for W_T, and for its initial head where the client chooses it.
    candidates
        Heads of known clients that it may choose.
    local
        F_l, if it is fitted already.
    cuda_graphs
        Compute steps as CUDA graphs on a GPU.
    """

    head: nn.Module
    z: Tensor
    source: gaussian_mixture.GaussianMixture
    quantiles: Tensor
    options: Options
    training: ClientConfig
    start: nn.Module | None = None
    targets: Tensor | None = None
    examples: int = 0
    only_mixture: bool = False
    candidates: tuple[nn.Module, ...] = ()
    local: nn.Module | None = None
    cuda_graphs: bool = False

    @property
    def needs_head(self) -> bool:
        """True if F_l is to be fitted."""
        return self.local is None and not self.only_mixture

    @property
    def device(self) -> torch.device:
        """Where to train."""
        return self.z.device

    @property
    def steps(self) -> int:
        """Number of local steps (R_c)."""
        return self.training.local_steps(len(self.z))


@dataclass(frozen=True, eq=False)
class HeadResult:
    """F_l (of a late joiner its initial head, None where the server chooses it), W_T, and the mean loss of steps."""

    local: nn.Module | None
    mixture: gaussian_mixture.GaussianMixture
    loss: float | None


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Run lines 5 to 9 on one client; on a late joiner in its first round line 8 and the upload only."""
    work = prepare(workload, message, context)
    return answer(work, run(work))


def prepare(workload: Workload, message: Message, context: ClientContext) -> HeadWork:
    """Return the work of one client, with its features, or what it makes of them to protect them.

    Raises
    ------
    ConfigError
        When local privacy is asked for and the options do not say how much noise.
    DataError
        When the client's data is missing or damaged.
    IncompatibleWeightsError
        When the message has the weights of another model.
    """
    options, training = context.config.strategy, context.config.client
    device = context.device
    data = client_dataset(workload, context, "train").on_device(device)
    model = received_model(workload, arrays_of(message.content), device)
    source, quantiles = read_mixture(arrays_of(message.content, MIXTURE), device)
    start = None
    if START in message.content:
        start = load(deepcopy(head_of(model)), arrays_of(message.content, START), device)
    candidates = tuple(
        load(deepcopy(head_of(model)), arrays_of(message.content, name), device)
        for name in message.content
        if name.startswith(CANDIDATE)
    )
    head, asked, release = head_of(model), only_mixture(message.content), release_of(context.config)
    work = HeadWork(
        head,
        torch.empty(0),
        source,
        quantiles,
        options,
        training,
        start,
        only_mixture=asked,
        candidates=candidates,
        cuda_graphs=context.config.run.cuda_graphs,
    )
    if release is None:
        return replace(work, z=client_features(model, data, options, device), examples=len(data))
    return protected(work, plain_features(model, data, device), release, secret=context.config.secret_noise)


def protected(work: HeadWork, z: Tensor, release: Release, *, secret: bool) -> HeadWork:
    """Return the work with features that are made of noised moments of a client's own z (examples, width).

    Where gradients are released, the head is fitted here, which is the only other part that reads z.
    """
    heads = [work.head, *([work.start] if work.start else [])]
    made = release_features(z, heads, work.source, release, secret=secret)
    local = None
    if release.steps and not work.only_mixture:
        local = fit_private_head(
            work.head,
            z,
            work.source,
            work.quantiles,
            work.options,
            work.training,
            release,
            examples=made.examples,
            secret=secret,
            start=work.start,
        )
    return replace(work, z=made.features, targets=made.targets, examples=made.examples, local=local)


def run(work: HeadWork) -> HeadResult:
    """Fit F_l and W_T, or W_T alone, on batches from torch's current random stream.

    Raises
    ------
    RunError
        When the loss is not finite.
    """
    if not work.needs_head:
        mixture = fit_mixture(work.z, work.source, work.options, work.training)
        return HeadResult(work.local or first_head(work), mixture, None)
    return HeadResult(
        *adapt_head(
            work.head,
            work.z,
            work.source,
            work.quantiles,
            work.options,
            work.training,
            work.start,
            work.targets,
            cuda_graphs=work.cuda_graphs,
        )
    )


def first_head(work: HeadWork) -> nn.Module | None:
    """Return a late joiner's initial head; None where the server chooses it."""
    return initial_head(work.head, work.candidates, work.z, work.options)


def answer(work: HeadWork, result: HeadResult) -> RecordDict:
    """Return the client's answer.

    Returns
    -------
    RecordDict
        ``head``: F_l; ``mixture``: W_T and the quantiles of its log-likelihood; ``metrics``: ``loss``, ``entropy`` and
        ``discrepancy`` of the two heads on the client's own data, no label among them. A late joiner's first answer has
        the number of examples alone in ``metrics``, and its initial head as ``head`` if it chooses that.
    """
    mixture = upload(result.mixture, work.z)
    if work.only_mixture:
        own = {} if result.local is None else {HEAD: tensor_record(result.local.state_dict())}
        return RecordDict({**own, MIXTURE: mixture, METRICS: metrics_record({}, work.examples)})
    assert result.local is not None
    p, q = probabilities(work.head, work.z), probabilities(result.local, work.z)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(1).mean()
    metrics = drop_none(loss=result.loss, entropy=float(entropy), discrepancy=float(discrepancy(p, q).mean()))
    return RecordDict(
        {
            HEAD: tensor_record(result.local.state_dict()),
            MIXTURE: mixture,
            METRICS: metrics_record(metrics, work.examples),
        }
    )


def client_features(model: nn.Module, data: ArrayDataset, options: Options, device: torch.device) -> Tensor:
    """Return a random subset of a client's features (rows, width), under G with the client's own statistics."""
    adapt_batchnorm(features_of(model), data, options.bn_images, options.bn_adaptation, device)
    return subsample_rows(encode(features_of(model), data, device, BATCH), options.max_features)


def only_mixture(content: RecordDict) -> bool:
    """Return True if a message asks for the client's mixture alone."""
    config = content[CONFIG]
    return isinstance(config, ConfigRecord) and bool(config.get(ONLY_MIXTURE, False))
