"""FedAvg: clients with labels train the whole model, the server averages.

**Source**: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
algorithm 1. The server half is Flower's own.

**Departures**: (1) clients take a fixed number of steps on batches drawn with replacement instead of epochs;
(2) local optimiser SGD with momentum 0.9, fresh each round; (3) with ``server.pretrain_steps`` > 0 the server first
trains the initial model on its own labelled data.

**Metrics**: ``loss`` is the mean local training loss; the workload's own metrics come from each client's test data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config import ClientTraining, Core, Flat, ServerTraining, build
from fedlab.errors import ConfigError
from fedlab.training import Progress, optimise, pick_device
from fedlab.workload import Workload
from strategies.protocol import (
    ARRAYS,
    METRICS,
    ClientHalf,
    Entry,
    arrays_of,
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
        if "y" not in workload.data(0, "train").columns:
            raise ConfigError(
                f"strategy {build(Core, '', flat).strategy!r} trains on the clients' own labels, and the "
                f"clients of this workload ({', '.join(workload.clients)}) have none; use dualadapt or "
                "source_only, or a setting in which clients hold labels (digits.setting=shards)"
            )

    def initialise(self) -> ArrayRecord:
        """A fresh model, trained on the server's labelled data for ``server.pretrain_steps``."""
        if not build(ServerTraining, "server", self.flat).pretrain_steps:
            return ArrayRecord(self.workload.model().state_dict())
        trainer = SourceTrainer(self.workload, self.flat, self.progress)
        trainer.pretrain()
        return ArrayRecord(trainer.average.state_dict())

    def metrics(self) -> dict[str, float]:
        """The server measures nothing itself."""
        return {}

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
    "labelled clients train, the server averages (McMahan 2017)", Knobs, FedAvg, ClientHalf(train, evaluate)
)
