"""FedAvg: clients with labels train the whole model, the server averages.

**Source**: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
algorithm 1. The server half is Flower's own.

**Departures**: (1) clients take a fixed number of steps on batches drawn with replacement instead of epochs;
(2) local optimiser SGD with momentum 0.9, fresh each round; (3) with ``server.pretrain_steps`` > 0 the server first
trains the initial model on its own labelled data.

**Metrics**: ``loss`` is the mean local training loss; the workload's own metrics come from each client's test data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config import ClientTraining, Core, Flat, ServerTraining, build
from fedlab.errors import ConfigError
from fedlab.seeds import seeded
from fedlab.training import Progress, optimise, pick_device
from fedlab.workload import Workload
from strategies import screening
from strategies.protocol import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    METRICS,
    ClientHalf,
    Entry,
    arrays_of,
    client_metrics,
    evaluate,
    known,
    load,
    metrics_record,
    own_data,
)
from strategies.source_only import SourceTrainer


@dataclass(frozen=True)
class Knobs:
    """FedAvg has no knobs of its own."""


class FedAvg(FlowerFedAvg):
    """Server half: Flower's FedAvg on the roster's order, with an initial model of the workload."""

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.workload, self.flat, self.progress = workload, flat, progress
        self.norm_limit = build(Core, "", flat).norm_limit
        self.measures = {EXAMPLES, "loss"} if build(ClientTraining, "client", flat).steps else {EXAMPLES}
        self.sent: dict[str, Tensor] = {}

    def initialise(self) -> ArrayRecord:
        """A fresh model, trained on the server's labelled data for ``server.pretrain_steps``."""
        if not build(ServerTraining, "server", self.flat).pretrain_steps:
            return ArrayRecord(self.workload.model().state_dict())
        trainer = SourceTrainer(self.workload, self.flat, self.progress)
        trainer.pretrain()
        return ArrayRecord(trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's messages; what was sent, in the types of a model, is what replies must look like."""
        with seeded("types of a model"):
            types = {name: tensor.dtype for name, tensor in self.workload.model().state_dict().items()}
        sent = arrays_of(RecordDict({ARRAYS: arrays}))  # Flower's mean makes counters float
        self.sent = {name: tensor.to(types[name]) for name, tensor in sent.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def check(self, reply: Message) -> None:
        """Refuse a reply that is no model like the one that was sent."""
        screening.arrays(reply.content, ARRAYS, self.sent, self.norm_limit)
        if set(reply.content) != {ARRAYS, METRICS, CONFIG} or client_metrics(reply).keys() != self.measures:
            came = sorted(reply.content), sorted(client_metrics(reply))
            raise screening.Refused(f"its records and metrics are {came}; expected a model and {self.measures}")

    def metrics(self) -> dict[str, float]:
        """The server measures nothing itself."""
        return {}

    def notes(self) -> list[dict[str, Any]]:
        """Nothing to tell."""
        return []

    def state(self) -> dict[str, Any]:
        """FedAvg remembers nothing but the arrays."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""


def train(workload: Workload, message: Message, context: Context, proximal: float = 0.0) -> RecordDict:
    """Client half: local SGD from the global arrays; with ``proximal`` > 0 FedProx's term is added.

    Returns
    -------
    RecordDict
        ``arrays``: the whole local model; ``metrics``: mean training loss and the number of examples.
    """
    flat = context.run_config
    knobs, device = build(ClientTraining, "client", flat), pick_device(build(Core, "", flat).device)
    model = load(workload.model(), arrays_of(message.content), device).train()
    start = [weight.detach().clone() for weight in model.parameters()]
    data = own_data(workload, context, "train")
    if "y" not in data.columns:
        raise ConfigError("this strategy trains on a client's own labels, and this client's training data has none")

    def loss() -> Tensor:
        batch = {name: column.to(device) for name, column in data.sample(knobs.batch).items()}
        value = workload.loss(model, batch)
        return value + proximal / 2 * squared_distance(model, start) if proximal else value

    optimiser = torch.optim.SGD(model.parameters(), knobs.learning_rate, momentum=0.9)
    mean = optimise(loss, optimiser, knobs.steps, name="local training")
    return RecordDict({ARRAYS: ArrayRecord(model.state_dict()), METRICS: metrics_record(known(loss=mean), len(data))})


def squared_distance(model: nn.Module, start: list[Tensor]) -> Tensor:
    """||w - w_0||^2 over all parameters, a scalar."""
    pairs = zip(model.parameters(), start, strict=True)
    return torch.stack([(weight - origin).square().sum() for weight, origin in pairs]).sum()


ENTRY: Entry = Entry(
    "labelled clients train, the server averages (McMahan 2017)",
    Knobs,
    FedAvg,
    ClientHalf(train, evaluate),
    labelled=True,
)
