"""Fed-DANN: domain-adversarial training naively federated; clients pull their features towards the source's.

**Source**: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016
(``fedlab/losses/adversarial.py``); the federation is FedAvg, in turn with the server's source steps
(``strategies/alternating.py``).

The discriminator's source half lives on the server, the target half on the clients: with the model the server sends
``features`` of some of its source examples under it. A client trains discriminator D and extractor G on those and on
its own; its G ascends on D's loss. Heads are trained on the server only.

**Privacy**: every client gets feature vectors of source examples, no images; with G, images may be approximately
reconstructed from them. The server gets from a client what FedAvg's does: a model.

**Departures**: (1) source features are fixed while a client trains, so G moves by its target half only; (2) source
classification and the adversarial steps alternate instead of being one loss; (3) ``weight`` does not grow over
training.

**Metrics**: as FedAvg; clients' ``loss`` is D's, log 2 if D cannot tell the domains apart.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass

import torch
from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.config.sections import NonNegativeFloat
from fedlab.errors import ConfigError
from fedlab.losses.adversarial import domain_loss, gradient_reversal
from fedlab.models.batchnorm_stats import encode
from fedlab.models.feature_classifier import check_parts, features_of, head_of, subsample_rows
from fedlab.optimizers import SGD
from fedlab.seeds import seeded
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import protocol
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.alternating import Alternating
from fedlab.strategies.base import Records
from fedlab.strategies.protocol import (
    CLIENT_SGD,
    ClientContext,
    ClientFunctions,
    ModelStates,
    StrategySpec,
    arrays_of,
    client_dataset,
    drop_none,
    load,
    tensor_record,
)
from fedlab.strategies.source_only import PHASES
from fedlab.strategies.wrapped_workload import WrappedWorkload
from fedlab.training import Progress, resolve_device, train_steps
from fedlab.workload import Workload

FEATURES = "features"


@dataclass(frozen=True)
class Options:
    """Fed-DANN's options."""

    weight: NonNegativeFloat = Field(
        0.1, description="how much the extractor ascends on the discriminator's loss; 0: not"
    )
    source_features: int = Field(512, ge=2, description="source feature vectors that every client gets in a round")
    aggregation: Aggregation = "fedavg"


class Adversarial(nn.Module):
    """G, F and a discriminator D on G's features.

    Raises
    ------
    ConfigError
        When the head does not begin with a linear layer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features_of(model), head_of(model)
        matrices = [weight for weight in self.head.parameters() if weight.dim() == 2]
        if not matrices:
            raise ConfigError(f"fed_dann needs a head that begins with a linear layer; {type(model).__name__} has none")
        width = matrices[0].shape[1]
        self.discriminator = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (batch, ...) to logits (batch, classes), by F on G."""
        logits: Tensor = self.head(self.features(x))
        return logits


@plain_dataclass(frozen=True)
class WithDiscriminator(WrappedWorkload):
    """A workload whose model has a discriminator in addition."""

    def model(self) -> nn.Module:
        """Return the workload's model and D."""
        return Adversarial(self.inner.model())


class FedDann(Alternating):
    """Server side: source steps in turn with the clients, which get source features with the model.

    Raises
    ------
    ConfigError
        When the model has no features and head.
    """

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        self.options = config.strategy
        with seeded("parts of a model"):
            check_parts(workload.model(), "fed_dann", config.run.workload)
        super().__init__(WithDiscriminator(workload), config, progress)

    def extra_records(self, server_round: int) -> Records:
        """Return features (source_features, width) of source examples under the averaged model."""
        with seeded(self.trainer.seed, "source features", server_round):
            source, count = self.trainer.source, self.options.source_features
            rows = torch.randperm(len(source))[:count]
            some = source.select(rows)
            z = subsample_rows(encode(features_of(self.trainer.average), some, self.trainer.device), count)
        return {FEATURES: tensor_record({"z": z.cpu()})}


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Train D to tell source from target features, and G to make it fail."""
    config, wrapped = context.config, WithDiscriminator(workload)
    options, training = config.strategy, config.client
    device = resolve_device(config.run.device)
    data = client_dataset(workload, context, "train")
    model = load(wrapped.model(), arrays_of(message.content), device)
    assert isinstance(model, Adversarial)
    rows_each = len(encode(features_of(model), data.subsample(1), device))  # 1, or one for each pixel
    model.train()
    z_source = arrays_of(message.content, FEATURES)["z"].to(device)  # (source features, width)
    discriminator, features = model.discriminator, features_of(model)

    def loss() -> Tensor:
        rows = torch.randint(len(z_source), (training.batch_size * rows_each,)).to(device)
        z_target = features(data.sample_batch(training.batch_size)["x"].to(device))
        return domain_loss(discriminator(z_source[rows]), discriminator(gradient_reversal(z_target, options.weight)))

    trainable = [*features.parameters(), *discriminator.parameters()]
    optimizer = SGD(trainable, training.learning_rate, training.momentum, training.weight_decay)
    steps, batches = training.local_steps(len(data)), training.accumulate_steps
    mean = train_steps(loss, optimizer, steps, name="adversarial training", accumulate=batches)
    return aggregations.make_reply(wrapped, message, context, model.state_dict(), drop_none(loss=mean), data)


def evaluate(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Return the metrics of F on G, on the client's test data."""
    return protocol.evaluate(WithDiscriminator(workload), message, context)


def predictor(workload: Workload, states: ModelStates) -> nn.Module:
    """Return the module that maps inputs ``x`` to logits (batch, classes)."""
    return protocol.full_model(WithDiscriminator(workload), states)


SPEC: StrategySpec = StrategySpec(
    Options,
    FedDann,
    ClientFunctions(train, evaluate, predictor=predictor),
    ignores=CLIENT_SGD,
    phases=PHASES,
)
