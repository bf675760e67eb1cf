"""Self-training: FedAvg in which unlabelled clients train on what the global model is sure of.

**Source**: Lee, Pseudo-Label, ICML workshop 2013, with a threshold as in Sohn et al., FixMatch, NeurIPS 2020;
federated by FedAvg, in turn with the server's source steps (``strategies/alternating.py``).

A client labels its examples once a round with argmax p, p the global model's probabilities in evaluation mode, and
takes local SGD steps on those with max p >= ``threshold``. Labels that it may have are not looked at. Where a model
gives several rows an example, such as pixels, the others of an example that has a sure one are labelled ``UNSURE``,
which cross-entropy leaves out.

**Departures**: (1) no strong augmentation, which a workload's clients do not have; (2) a client that is sure of
nothing sends back the model that it got.

**Metrics**: as FedAvg; clients also report ``confident``, the share of examples (or rows) that they trained on.
"""

from __future__ import annotations

import torch
from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset
from fedlab.models.batchnorm_stats import encode
from fedlab.models.feature_classifier import group_rows
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import fedavg
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.alternating import Alternating, check_classes
from fedlab.strategies.protocol import (
    ClientContext,
    ClientFunctions,
    StrategySpec,
    arrays_of,
    client_dataset,
    drop_none,
    evaluate,
    load,
)
from fedlab.strategies.source_only import PHASES
from fedlab.training import Progress
from fedlab.workload import Workload

UNSURE = -100  # the label that torch's cross-entropy leaves out


@dataclass(frozen=True)
class Options:
    """Self-training's options."""

    threshold: float = Field(0.9, ge=0.0, lt=1.0, description="least probability of a pseudo-label; 0: all are used")
    aggregation: Aggregation = "fedavg"


class SelfTraining(Alternating):
    """Server half: source steps in turn with the clients."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(workload, config, progress)
        check_classes(self.trainer, config)
        self.measures |= {"confident"}
        self.optional = {"loss"}


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Client half: pseudo-labels, then FedAvg's local SGD on them."""
    threshold = context.config.strategy.threshold
    device = context.device
    data = client_dataset(workload, context, "train")
    model = load(workload.model(), arrays_of(message.content), device)
    chosen, share = pseudo_labelled(data, encode(model, data, device).softmax(1).cpu(), threshold)
    steps = None if len(chosen) else 0
    trained, mean = fedavg.local_training(workload, message, context, chosen, steps=steps)
    metrics = drop_none(loss=mean, confident=share)
    return aggregations.make_reply(
        workload, message, context, trained.state_dict(), metrics, chosen if len(chosen) else data
    )


def pseudo_labelled(data: ArrayDataset, p: Tensor, threshold: float) -> tuple[ArrayDataset, float]:
    """Examples that have a sure row, with labels (examples,) or (examples, rows), and the share of all rows.

    Parameters
    ----------
    p
        Probabilities (examples, classes), or of as many rows for each example (examples * rows, classes).
    """
    rows, classes = sure(p, threshold)
    labels = group_rows(torch.full((len(p),), UNSURE).index_copy(0, rows, classes), len(data))
    some = (labels.view(len(data), -1) != UNSURE).any(1).nonzero().flatten()
    columns = {**{name: column[some] for name, column in data.columns.items()}, "y": labels[some]}
    return ArrayDataset(columns, data.transform), len(rows) / len(p)


def sure(p: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Rows of probabilities (examples, classes) whose largest reaches the threshold, and their classes."""
    best, labels = p.max(1)
    rows = torch.nonzero(best >= threshold).flatten()
    return rows, labels[rows]


SPEC: StrategySpec = StrategySpec(
    Options,
    SelfTraining,
    ClientFunctions(train, evaluate),
    phases=PHASES,
)
