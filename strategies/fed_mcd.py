"""Fed-MCD: the three steps of maximum classifier discrepancy, naively federated.

**Source**: Saito et al., Maximum Classifier Discrepancy for Unsupervised Domain Adaptation, CVPR 2018, section 3.3;
its naive federation, which adapts poorly, is a baseline of Yao et al., WACV 2022. FedAvg in turn with the server's
source steps (``strategies/alternating.py``). d is the discrepancy, F and F' two heads on one extractor G:

A. the server: G, F, F' <- argmin cross-entropy on the source
B. a client: F, F' <- argmax d(F(G(x)), F'(G(x))) on its own data, G fixed
C. a client, ``generator_steps`` times: G <- argmin d, F and F' fixed

**Departures**: (1) step B lacks the source's cross-entropy, which clients have no data for, so nothing constrains the
heads until step A of the next round; (2) local SGD instead of Adam; (3) ``client.steps`` counts all gradient steps, so
that a client works as long as with other strategies.

**Metrics**: as FedAvg, of the mean of both heads' probabilities; clients' ``loss`` is the mean discrepancy in step C.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass

from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.data.dataset import Batch
from fedlab.errors import ConfigError, plural
from fedlab.losses.discrepancy import discrepancy
from fedlab.models.feature_classifier import EnsembleHead, check_parts, features_of, head_of
from fedlab.optimizers import SGD
from fedlab.seeds import seeded
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import protocol
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.alternating import Alternating, check_classes
from fedlab.strategies.protocol import (
    CLIENT_BATCHES,
    CLIENT_SGD,
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
from fedlab.strategies.wrapped_workload import WrappedWorkload
from fedlab.training import Progress, resolve_device, train_steps
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """Fed-MCD's options."""

    generator_steps: int = Field(4, gt=0, description="steps C for each step B")
    aggregation: Aggregation = "fedavg"


class TwoHeads(nn.Module):
    """G with two heads, which predicts with the mean of their probabilities."""

    def __init__(self, features: nn.Module, head: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.features, self.head, self.second = features, head, second

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (batch, ...) to log-probabilities (batch, classes)."""
        mean: Tensor = EnsembleHead(self.head, self.second)(self.features(x))
        return mean


@plain_dataclass(frozen=True)
class WithSecondHead(WrappedWorkload):
    """A workload whose model has a second head; its loss is the sum over both."""

    def model(self) -> nn.Module:
        """Return the workload's model and a second head, with other weights from the same random stream."""
        model = self.inner.model()
        return TwoHeads(features_of(model), head_of(model), head_of(self.inner.model()))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return step A's loss: the sum over both heads, the features computed once."""
        assert isinstance(model, TwoHeads)
        encoded = {**batch, "x": model.features(batch["x"])}
        return self.inner.loss(model.head, encoded) + self.inner.loss(model.second, encoded)


def server(workload: Workload, config: Config, progress: Progress) -> Alternating:
    """Return the server side: step A, then the mean of the clients' models.

    Raises
    ------
    ConfigError
        When the model has no features and head, the workload no classes, or ``client.steps`` is too small.
    """
    options, training = config.strategy, config.client
    with seeded("parts of a model"):
        check_parts(workload.model(), "fed_mcd", config.run.workload)
    strategy = Alternating(WithSecondHead(workload), config, progress)
    check_classes(strategy.trainer, config)
    if not training.epochs and 0 < training.steps <= options.generator_steps:
        raise ConfigError(
            f"option 'client.steps' is {training.steps}, too few for one step B and "
            f"{plural(options.generator_steps, 'step')} C "
            "(option 'fed_mcd.generator_steps')"
        )
    return strategy


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Run steps B and C on the client's own data."""
    config, wrapped = context.config, WithSecondHead(workload)
    options, training = config.strategy, config.client
    device = resolve_device(config.run.device)
    data = client_dataset(workload, context, "train")
    model = load(wrapped.model(), arrays_of(message.content), device).train()
    assert isinstance(model, TwoHeads)
    heads = [*model.head.parameters(), *model.second.parameters()]
    head_optimizer = SGD(heads, training.learning_rate, training.momentum, training.weight_decay)
    feature_optimizer = SGD(
        model.features.parameters(), training.learning_rate, training.momentum, training.weight_decay
    )

    def step_b() -> Tensor:
        return -disagreement(model, model.features(x()).detach())

    def step_c() -> Tensor:
        return disagreement(model, model.features(x()))

    def x() -> Tensor:
        return data.sample_batch(training.batch_size)["x"].to(device)

    turns, means = training.local_steps(len(data)) // (1 + options.generator_steps), []
    for _ in range(turns):
        train_steps(step_b, head_optimizer, 1, name="step B")
        means.append(train_steps(step_c, feature_optimizer, options.generator_steps, name="step C"))
    mean = sum(value for value in means if value is not None) / turns if turns else None
    return aggregations.make_reply(wrapped, message, context, model.state_dict(), drop_none(loss=mean), data)


def disagreement(model: TwoHeads, z: Tensor) -> Tensor:
    """Return the mean of d over features z (batch, width), a scalar."""
    return discrepancy(model.head(z).softmax(1), model.second(z).softmax(1)).mean()


def evaluate(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Return the metrics of both heads on G, on the client's test data."""
    return protocol.evaluate(WithSecondHead(workload), message, context)


def predictor(workload: Workload, states: ModelStates) -> nn.Module:
    """Return the module that maps inputs ``x`` to log-probabilities (batch, classes)."""
    return protocol.full_model(WithSecondHead(workload), states)


SPEC: StrategySpec = StrategySpec(
    Options,
    server,
    ClientFunctions(train, evaluate, predictor=predictor),
    phases=PHASES,
    ignores=CLIENT_BATCHES | CLIENT_SGD,
)
