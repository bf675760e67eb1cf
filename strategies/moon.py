"""MOON: a client's features are drawn to those of the global model, and away from those of its previous local model.

**Source**: Li et al., Model-Contrastive Federated Learning, CVPR 2021, algorithm 1: a client minimizes its loss + mu l,
with l as in ``fedlab/losses/model_contrastive.py``; z are the features of the model that trains, z_+ those of the
global model as it was sent, z_- those of the client's model after its last training. Reference:
github.com/QinbinLi/MOON, whose defaults mu = 1 and temperature 0.5 are ours; the paper chooses mu of 0.1, 1, 5, 10.

**State of a client**: the feature extractor after its last training. **An absent client** keeps it, so that z_- comes
from its last round, however long ago.

**Departures**: (1) z is the output of the model's ``features``, without a projection head of its own: the strategy
adds no layer to a workload's model; (2) in a client's first round there is no previous model, and no such term; (3)
those of FedAvg.

**Metrics**: as FedAvg; ``loss`` includes the term.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass

import torch
from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.config.sections import PositiveFloat
from fedlab.data.dataset import Batch
from fedlab.errors import ConfigError
from fedlab.losses.model_contrastive import model_contrastive_loss
from fedlab.models.feature_classifier import check_parts, features_of
from fedlab.strategies import fedavg
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.local_training import LocalWork, prepare, run
from fedlab.strategies.protocol import (
    SERVER_STEPS,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    evaluate,
    load,
    loaded_model,
    round_of,
)
from fedlab.strategies.wrapped_workload import WrappedWorkload
from fedlab.training import Progress
from fedlab.workload import Workload, blank_model

FEATURES = "features"  # the previous model's, in the client's state, and the prefix of their names in a model


@dataclass(frozen=True)
class Options:
    """MOON's options."""

    mu: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="weight of the contrastive term; 0 is FedAvg")
    temperature: PositiveFloat = Field(0.5, description="temperature of the contrastive term (tau)")
    aggregation: Aggregation = "fedavg"


def server(workload: Workload, config: Config, progress: Progress) -> fedavg.FedAvg:
    """Return FedAvg's server.

    Raises
    ------
    ConfigError
        When the model has no feature extractor.
    """
    check_parts(blank_model(workload), config.run.strategy, config.run.workload)
    return fedavg.FedAvg(workload, config, progress)


@plain_dataclass(frozen=True)
class ContrastiveWorkload(WrappedWorkload):
    """A workload whose loss compares features with those of two fixed extractors, ``sent`` and ``previous``."""

    sent: nn.Module
    previous: nn.Module
    mu: float
    temperature: float

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the workload's loss plus mu times the contrastive term of all features that it computes.

        Raises
        ------
        ConfigError
            When the workload's loss computes none.
        """
        terms: list[Tensor] = []

        def compare(module: nn.Module, inputs: tuple[Tensor, ...], z: Tensor) -> None:
            with torch.no_grad():
                positive, negative = self.sent(*inputs), self.previous(*inputs)
            terms.append(model_contrastive_loss(z, positive, negative, self.temperature))

        hook = features_of(model).register_forward_hook(compare)
        try:
            value = self.inner.loss(model, batch)
        finally:
            hook.remove()
        if not terms:
            raise ConfigError("moon compares features, and this workload's loss does not call the model's .features")
        return value + self.mu * torch.stack(terms).mean()


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Train as in FedAvg with the contrastive term, and keep the feature extractor for the next time."""
    work = prepare(workload, message, context)
    trained = run(contrastive(workload, work, message, context), work)
    prefix = f"{FEATURES}."
    features = {key.removeprefix(prefix): value for key, value in trained.state.items() if key.startswith(prefix)}
    context.state.save(round_of(message), {FEATURES: features})
    return fedavg.reply(workload, message, context, work, trained)


def contrastive(workload: Workload, work: LocalWork, message: Message, context: ClientContext) -> Workload:
    """Return the workload with the term in its loss; the workload itself where the term is off or has no model yet."""
    options, own = context.config.strategy, context.state.load(round_of(message))
    if own is None or not options.mu:
        return workload
    sent, previous = (
        features_of(loaded_model(workload, work.start, work.device)).eval().requires_grad_(False) for _ in range(2)
    )
    load(previous, own[FEATURES], work.device)
    return ContrastiveWorkload(workload, sent, previous, options.mu, options.temperature)


SPEC: StrategySpec = StrategySpec(
    Options,
    server,
    ClientFunctions(train, evaluate),
    needs_client_labels=True,
    client_state=True,
    ignores=SERVER_STEPS,
)
