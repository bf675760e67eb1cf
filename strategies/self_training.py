"""Self-training: FedAvg in which unlabeled clients train on the global model's confident predictions.

**Source**: Lee, Pseudo-Label, ICML workshop 2013, with a threshold as in Sohn et al., FixMatch, NeurIPS 2020;
federated by FedAvg, in turn with the server's source steps (``strategies/alternating.py``).

A client labels its examples once a round with argmax p, p the global model's probabilities in evaluation mode, and
takes local SGD steps on those with max p >= ``threshold``. It never reads labels, even if it has some. Where a model
gives several rows for an example, such as pixels, an example with at least one confident row is used, and its other
rows are labeled ``IGNORED``, which cross-entropy leaves out.

**Departures**: (1) no strong augmentation, which a workload's clients do not have; (2) a client without confident
predictions returns the model that it received.

**Metrics**: as FedAvg; clients also report ``confident``, the fraction of examples (or rows) that they trained on.
"""

from __future__ import annotations

from dataclasses import replace

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
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.alternating import Alternating, check_classes
from fedlab.strategies.local_training import prepare, run
from fedlab.strategies.protocol import (
    ClientContext,
    ClientFunctions,
    StrategySpec,
    arrays_of,
    client_dataset,
    drop_none,
    evaluate,
    loaded_model,
)
from fedlab.strategies.source_only import PHASES
from fedlab.training import Progress
from fedlab.workload import Workload

IGNORED = -100  # the label that torch's cross-entropy leaves out


@dataclass(frozen=True)
class Options:
    """Self-training's options."""

    threshold: float = Field(0.9, ge=0.0, lt=1.0, description="least probability of a pseudo-label; 0: all are used")
    aggregation: Aggregation = "fedavg"


def server(workload: Workload, config: Config, progress: Progress) -> Alternating:
    """Return the server side: source steps in turn with the clients.

    Raises
    ------
    ConfigError
        When the workload has no classes.
    """
    strategy = Alternating(workload, config, progress, required=["confident"], optional=["loss"])
    check_classes(strategy.trainer, config)
    return strategy


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Pseudo-label the client's examples and train on them as in FedAvg."""
    threshold = context.config.strategy.threshold
    device = context.device
    data = client_dataset(workload, context, "train")
    model = loaded_model(workload, arrays_of(message.content), device)
    chosen, confident = pseudo_labeled(data, encode(model, data, device).softmax(1).cpu(), threshold)
    work = prepare(workload, message, context, chosen)
    trained = run(workload, work if len(chosen) else replace(work, steps=0))
    metrics = drop_none(loss=trained.loss, confident=confident)
    return aggregations.make_reply(workload, message, context, trained.state, metrics, chosen if len(chosen) else data)


def pseudo_labeled(data: ArrayDataset, p: Tensor, threshold: float) -> tuple[ArrayDataset, float]:
    """Return the examples that have a confident row, with pseudo-labels, and the fraction of rows that are confident.

    Parameters
    ----------
    p
        Probabilities (examples, classes), or of several rows for each example (examples * rows, classes).

    Returns
    -------
    tuple
        ArrayDataset with labels ``y`` (examples,) or (examples, rows), and the fraction in [0, 1].
    """
    rows, classes = confident_rows(p, threshold)
    labels = group_rows(torch.full((len(p),), IGNORED).index_copy(0, rows, classes), len(data))
    some = (labels.view(len(data), -1) != IGNORED).any(1).nonzero().flatten()
    columns = {**{name: column[some] for name, column in data.columns.items()}, "y": labels[some]}
    return ArrayDataset(columns, data.transform, data.host_only), len(rows) / len(p)


def confident_rows(p: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return the indices of rows of p (rows, classes) whose maximum reaches the threshold, and their classes."""
    best, labels = p.max(1)
    rows = torch.nonzero(best >= threshold).flatten()
    return rows, labels[rows]


SPEC: StrategySpec = StrategySpec(
    Options,
    server,
    ClientFunctions(train, evaluate),
    phases=PHASES,
)
