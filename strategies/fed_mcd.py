"""Fed-MCD: the three steps of maximum classifier discrepancy, naively federated.

**Source**: Saito et al., Maximum Classifier Discrepancy for Unsupervised Domain Adaptation, CVPR 2018, section 3.3;
that this is what a naive federation does, and does badly, is a baseline of Yao et al., WACV 2022. FedAvg in turn with
the server's source steps (``strategies/alternating.py``). d is the discrepancy, F and F' two heads on one extractor G:

A. the server: G, F, F' <- argmin cross-entropy on the source
B. a client: F, F' <- argmax d(F(G(x)), F'(G(x))) on its own data, G fixed
C. a client, ``generator_steps`` times: G <- argmin d, F and F' fixed

**Departures**: (1) step B lacks the source's cross-entropy, which clients have no data for, so heads move apart without
anything that holds them until step A of the next round; (2) local SGD instead of Adam; (3) ``client.steps`` counts all
gradient steps, so that a client works as long as with other strategies.

**Metrics**: as FedAvg, of the mean of both heads' probabilities; clients' ``loss`` is the mean discrepancy in step C.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass

import torch
from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.errors import ConfigError
from fedlab.losses.discrepancy import discrepancy
from fedlab.models.feature_classifier import EnsembleHead, check_parts, features_of, head_of
from fedlab.seeds import seeded
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import protocol
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.alternating import Alternating, check_classes
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


@dataclass(frozen=True)
class Options:
    """Fed-MCD's options."""

    generator_steps: int = Field(4, gt=0, description="steps C for each step B")
    aggregation: Aggregation = "fedavg"


class TwoHeads(nn.Module):
    """G with two heads; predicts with the mean of their probabilities."""

    def __init__(self, features: nn.Module, head: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.features, self.head, self.second = features, head, second

    def forward(self, x: Tensor) -> Tensor:
        """Inputs to log-probabilities (batch, classes)."""
        mean: Tensor = EnsembleHead(self.head, self.second)(self.features(x))
        return mean


@plain_dataclass(frozen=True)
class WithSecondHead:
    """A workload whose model has a second head; its loss is that of both."""

    inner: Workload

    @property
    def clients(self) -> tuple[str, ...]:
        """Its clients."""
        return self.inner.clients

    def model(self) -> nn.Module:
        """Its model, and a head with other weights from the same random stream."""
        model = self.inner.model()
        return TwoHeads(features_of(model), head_of(model), head_of(self.inner.model()))

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Its data."""
        return self.inner.data(partition, split)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Step A: the sum over both heads of its loss, the features computed once."""
        assert isinstance(model, TwoHeads)
        encoded = {**batch, "x": model.features(batch["x"])}
        return self.inner.loss(model.head, encoded) + self.inner.loss(model.second, encoded)

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Its metrics."""
        return self.inner.evaluate(model, data)


class FedMcd(Alternating):
    """Server half: step A, then the mean of the clients' models."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        options, training = config.strategy, config.client
        with seeded("parts of a model"):
            check_parts(workload.model(), "fed_mcd", config.run.workload)
        super().__init__(WithSecondHead(workload), config, progress)
        check_classes(self.trainer, config)
        if 0 < training.steps <= options.generator_steps:
            raise ConfigError(
                f"option 'client.steps' is {training.steps}, too few for one step B and {options.generator_steps} steps C "
                "(option 'fed_mcd.generator_steps')"
            )


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Client half: steps B and C."""
    config, whole = context.config, WithSecondHead(workload)
    options, training = config.strategy, config.client
    device = resolve_device(config.run.device)
    data = client_dataset(workload, context, "train")
    model = load(whole.model(), arrays_of(message.content), device).train()
    assert isinstance(model, TwoHeads)
    heads = [*model.head.parameters(), *model.second.parameters()]
    apart = torch.optim.SGD(heads, training.learning_rate, momentum=protocol.MOMENTUM)
    together = torch.optim.SGD(model.features.parameters(), training.learning_rate, momentum=protocol.MOMENTUM)

    def step_b() -> Tensor:
        return -disagreement(model, model.features(x()).detach())

    def step_c() -> Tensor:
        return disagreement(model, model.features(x()))

    def x() -> Tensor:
        return data.sample_batch(training.batch_size)["x"].to(device)

    turns, means = training.steps // (1 + options.generator_steps), []
    for _ in range(turns):
        train_steps(step_b, apart, 1, name="step B")
        means.append(train_steps(step_c, together, options.generator_steps, name="step C"))
    mean = sum(value for value in means if value is not None) / turns if turns else None
    return aggregations.make_reply(whole, message, context, model.state_dict(), drop_none(loss=mean), data)


def disagreement(model: TwoHeads, z: Tensor) -> Tensor:
    """Mean of d over features (batch, width)."""
    return discrepancy(model.head(z).softmax(1), model.second(z).softmax(1)).mean()


def evaluate(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Client half of testing: both heads on G."""
    return protocol.evaluate(WithSecondHead(workload), message, context)


def predictor(workload: Workload, states: ModelStates) -> nn.Module:
    """Inputs ``x`` to log-probabilities (batch, classes)."""
    return protocol.full_model(WithSecondHead(workload), states)


SPEC: StrategySpec = StrategySpec(
    Options,
    FedMcd,
    ClientFunctions(train, evaluate, predictor=predictor),
    phases=PHASES,
)
