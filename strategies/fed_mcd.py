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
from flwr.app import Context, Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config.schema import ClientTraining, Core, Flat, Positive, build
from fedlab.data.dataset import Batch, Examples
from fedlab.errors import ConfigError
from fedlab.losses.discrepancy import discrepancy
from fedlab.models.feature_classifier import Average, check_parts, features_of, head_of
from fedlab.seeds import seeded
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import protocol
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.alternating import Alternating, check_classes
from fedlab.strategies.protocol import ClientHalf, Entry, States, arrays_of, known, load, own_data
from fedlab.strategies.source_only import PHASES
from fedlab.training import Progress, optimise, pick_device
from fedlab.workload import Workload


@dataclass(frozen=True)
class Knobs:
    """Fed-MCD's knobs."""

    generator_steps: Positive = Field(4, description="steps C for each step B")
    aggregation: Aggregation = "fedavg"


class TwoHeads(nn.Module):
    """G with two heads; predicts with the mean of their probabilities."""

    def __init__(self, features: nn.Module, head: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.features, self.head, self.second = features, head, second

    def forward(self, x: Tensor) -> Tensor:
        """Inputs to log-probabilities (batch, classes)."""
        mean: Tensor = Average(self.head, self.second)(self.features(x))
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

    def data(self, partition: int | None, split: str) -> Examples:
        """Its data."""
        return self.inner.data(partition, split)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Step A: the sum over both heads of its loss, the features computed once."""
        assert isinstance(model, TwoHeads)
        encoded = {**batch, "x": model.features(batch["x"])}
        return self.inner.loss(model.head, encoded) + self.inner.loss(model.second, encoded)

    def evaluate(self, model: nn.Module, data: Examples) -> dict[str, float]:
        """Its metrics."""
        return self.inner.evaluate(model, data)


class FedMcd(Alternating):
    """Server half: step A, then the mean of the clients' models."""

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        knobs, training = build(Knobs, "fed_mcd", flat), build(ClientTraining, "client", flat)
        with seeded("parts of a model"):
            check_parts(workload.model(), "fed_mcd", build(Core, "", flat).workload)
        super().__init__(WithSecondHead(workload), flat, progress, knobs.aggregation)
        check_classes(self.trainer, flat)
        if 0 < training.steps <= knobs.generator_steps:
            raise ConfigError(
                f"knob 'client.steps' is {training.steps}, too few for one step B and {knobs.generator_steps} steps C "
                "(knob 'fed_mcd.generator_steps')"
            )


def train(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Client half: steps B and C."""
    flat, whole = context.run_config, WithSecondHead(workload)
    knobs, training = build(Knobs, "fed_mcd", flat), build(ClientTraining, "client", flat)
    device = pick_device(build(Core, "", flat).device)
    data = own_data(workload, context, "train")
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
        return data.sample(training.batch)["x"].to(device)

    turns, means = training.steps // (1 + knobs.generator_steps), []
    for _ in range(turns):
        optimise(step_b, apart, 1, name="step B")
        means.append(optimise(step_c, together, knobs.generator_steps, name="step C"))
    mean = sum(value for value in means if value is not None) / turns if turns else None
    return aggregations.answer(whole, message, context, model.state_dict(), known(loss=mean), data)


def disagreement(model: TwoHeads, z: Tensor) -> Tensor:
    """Mean of d over features (batch, width)."""
    return discrepancy(model.head(z).softmax(1), model.second(z).softmax(1)).mean()


def evaluate(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Client half of testing: both heads on G."""
    return protocol.evaluate(WithSecondHead(workload), message, context)


def predictor(workload: Workload, states: States) -> nn.Module:
    """Inputs ``x`` to log-probabilities (batch, classes)."""
    return protocol.whole_model(WithSecondHead(workload), states)


ENTRY: Entry = Entry(
    "MCD's three steps naively federated: source on the server, discrepancy on clients (Saito 2018)",
    Knobs,
    FedMcd,
    ClientHalf(train, evaluate, predictor=predictor),
    phases=PHASES,
)
