"""Fed-DANN: domain-adversarial training naively federated; clients pull their features towards the source's.

**Source**: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016
(``fedlab/losses/adversarial.py``); the federation is FedAvg, in turn with the server's source steps
(``strategies/alternating.py``).

The discriminator's source half lives on the server, the target half on the clients: with the model the server sends
``features`` of some of its source examples under it. A client trains discriminator D and extractor G on those and on
its own; its G ascends on D's loss. Heads are trained on the server only.

**What leaks**: every client gets feature vectors of source examples, no images; whoever holds G may reconstruct
something like the images from them. The server learns of a client what FedAvg's does: a model.

**Departures**: (1) source features stand still while a client trains, so G moves by its target half only; (2) source
classification and the adversarial steps alternate instead of being one loss; (3) ``weight`` does not grow over
training.

**Metrics**: as FedAvg; clients' ``loss`` is D's, log 2 where it only guesses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass as plain_dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.config.sections import NonNegativeFloat
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.errors import ConfigError
from fedlab.losses.adversarial import domain_loss, gradient_reversal
from fedlab.models.batchnorm_stats import encode
from fedlab.models.feature_classifier import check_parts, features_of, head_of, subsample_rows
from fedlab.seeds import seeded
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import protocol
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.alternating import Alternating
from fedlab.strategies.protocol import (
    ClientContext,
    ClientFunctions,
    ModelStates,
    StrategySpec,
    arrays_of,
    client_dataset,
    drop_none,
    load,
)
from fedlab.strategies.source_only import PHASES
from fedlab.training import Progress, resolve_device, train_steps
from fedlab.workload import Workload

FEATURES = "features"


@dataclass(frozen=True)
class Options:
    """Fed-DANN's options."""

    weight: NonNegativeFloat = Field(0.1, description="how much the extractor ascends on the discriminator's loss; 0: not")
    source_features: int = Field(512, ge=2, description="source feature vectors that every client gets in a round")
    aggregation: Aggregation = "fedavg"


class Adversarial(nn.Module):
    """G, F and a discriminator D of G's features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features_of(model), head_of(model)
        matrices = [weight for weight in self.head.parameters() if weight.dim() == 2]
        if not matrices:
            raise ConfigError(f"fed_dann needs a head that begins with a linear layer; {type(model).__name__} has none")
        width = matrices[0].shape[1]
        self.discriminator = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs to logits (batch, classes); D has no part in it."""
        logits: Tensor = self.head(self.features(x))
        return logits


@plain_dataclass(frozen=True)
class WithDiscriminator:
    """A workload whose model has a discriminator beside it."""

    inner: Workload

    @property
    def clients(self) -> tuple[str, ...]:
        """Its clients."""
        return self.inner.clients

    def model(self) -> nn.Module:
        """Its model and D."""
        return Adversarial(self.inner.model())

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Its data."""
        return self.inner.data(partition, split)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Its loss."""
        return self.inner.loss(model, batch)

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Its metrics."""
        return self.inner.evaluate(model, data)


class FedDann(Alternating):
    """Server half: source steps; the source's features go out with the model."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        self.options = config.strategy
        with seeded("parts of a model"):
            check_parts(workload.model(), "fed_dann", config.run.workload)
        super().__init__(WithDiscriminator(workload), config, progress)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The averaged model, and what it makes of some source examples."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        with seeded(self.trainer.seed, "source features", server_round):
            source, count = self.trainer.source, self.options.source_features
            rows = torch.randperm(len(source))[:count]
            some = ArrayDataset({name: column[rows] for name, column in source.columns.items()}, source.transform)
            z = subsample_rows(encode(features_of(self.trainer.average), some, self.trainer.device), count)
        record = ArrayRecord({"z": z.cpu()})
        content = RecordDict({**messages[0].content, FEATURES: record}) if messages else RecordDict()
        for message in messages:
            message.content = content  # one for all, so that it is encoded once
        return messages


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Client half: D learns to tell the domains apart, G to make it fail."""
    config, whole = context.config, WithDiscriminator(workload)
    options, training = config.strategy, config.client
    device = resolve_device(config.run.device)
    data = client_dataset(workload, context, "train")
    model = load(whole.model(), arrays_of(message.content), device)
    assert isinstance(model, Adversarial)
    rows_each = len(encode(features_of(model), data.subsample(1), device))  # 1, or one for each pixel
    model.train()
    z_source = arrays_of(message.content, FEATURES)["z"].to(device)  # (source features, width)
    discriminator, features = model.discriminator, features_of(model)

    def loss() -> Tensor:
        rows = torch.randint(len(z_source), (training.batch_size * rows_each,)).to(device)
        z_target = features(data.sample_batch(training.batch_size)["x"].to(device))
        return domain_loss(discriminator(z_source[rows]), discriminator(gradient_reversal(z_target, options.weight)))

    learning = [*features.parameters(), *discriminator.parameters()]
    optimiser = torch.optim.SGD(learning, training.learning_rate, momentum=protocol.MOMENTUM)
    mean = train_steps(loss, optimiser, training.steps, name="adversarial training")
    return aggregations.make_reply(whole, message, context, model.state_dict(), drop_none(loss=mean), data)


def evaluate(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Client half of testing: F on G."""
    return protocol.evaluate(WithDiscriminator(workload), message, context)


def predictor(workload: Workload, states: ModelStates) -> nn.Module:
    """Inputs ``x`` to logits (batch, classes)."""
    return protocol.full_model(WithDiscriminator(workload), states)


SPEC: StrategySpec = StrategySpec(
    Options,
    FedDann,
    ClientFunctions(train, evaluate, predictor=predictor),
    phases=PHASES,
)
