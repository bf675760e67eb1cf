"""SemiFL: the server fine-tunes on labels, clients label everything with the fresh model, and learn with mixup.

**Source**: Diao et al., SemiFL: Semi-Supervised Federated Learning for Unlabeled Clients with Alternate Training,
NeurIPS 2022, algorithm 1; adaptive thresholds: Seo et al., (FL)^2: Overcoming Few Labels in Federated Semi-Supervised
Learning, NeurIPS 2024, equations 4 and 5::

    1  server: steps on the labeled source, then broadcast the model
    2  client: p <- probabilities of the received model for all x;  fix <- those with max p >= threshold, labeled
    3    mix <- examples drawn from all x, with their labels
    4    every step, l ~ Beta(mixup, mixup):  x_mix = l x_fix + (1 - l) x_mix
    5      argmin  CE(f(view(x_fix)), y_fix)  +  l CE(f(view(x_mix)), y_fix) + (1 - l) CE(f(view(x_mix)), y_mix)
    6  server: mean of the clients' models (``aggregation=fedavgm`` gives the published momentum)

With ``thresholds=adaptive`` a client's threshold is the mean of its own largest probabilities and, by class, that times
the class's mean probability over the largest such mean.

**Departures**: (1) optimizers and numbers of steps are the run's (``server.*``, ``client.*``), the same for every
strategy; (2) batch norms are averaged as they are, not static; (3) weights of the mean are numbers of examples, also
with adaptive thresholds; (4) a client without confident predictions returns the model that it received.

**Metrics**: as FedAvg; clients also report ``confident``, the fraction of examples in ``fix``.
"""

from __future__ import annotations

from typing import Literal

import torch
from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedlab.config.sections import PositiveFloat
from fedlab.models.batchnorm_stats import encode
from fedlab.optimizers import SGD
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.client_adaptation.wrapper import AdaptingServer, views_of
from fedlab.strategies.protocol import (
    CLIENT_OPTIMIZER,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    arrays_of,
    client_dataset,
    drop_none,
    evaluate,
    loaded_model,
)
from fedlab.strategies.self_training import server
from fedlab.strategies.source_only import PHASES
from fedlab.training import train_steps
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """SemiFL's options."""

    threshold: float = Field(0.95, ge=0.0, lt=1.0, description="least probability of a fixed pseudo-label")
    thresholds: Literal["fixed", "adaptive"] = Field(
        "fixed", description="fixed: the same for all; adaptive: by client and class, from their mean probabilities"
    )
    mixup: PositiveFloat = Field(0.75, description="both parameters of mixup's Beta distribution")
    aggregation: Aggregation = "fedavg"


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Run lines 2 to 5 on one client."""
    options, training, device = context.config.strategy, context.config.client, context.device
    data = client_dataset(workload, context, "train")
    model = loaded_model(workload, arrays_of(message.content), device)
    p = encode(model, data, device).softmax(1)
    labels = p.argmax(1)
    fixed = confident(p, options).nonzero()[:, 0].cpu()  # line 2
    view, _ = views_of(workload)
    beta = torch.distributions.Beta(options.mixup, options.mixup)

    def logits(x: Tensor) -> Tensor:
        out: Tensor = model(view(x).to(device))
        return out

    def loss() -> Tensor:
        first = fixed[torch.randint(len(fixed), (training.batch_size,))]
        second = torch.randint(len(data), (training.batch_size,))  # line 3
        share = float(beta.sample())
        x, other = data[first]["x"], data[second]["x"]
        y, y_other = labels[first.to(device)], labels[second.to(device)]
        mixed = logits(share * x + (1 - share) * other)  # line 4
        mix = share * cross_entropy(mixed, y) + (1 - share) * cross_entropy(mixed, y_other)
        return cross_entropy(logits(x), y) + mix

    optimizer = SGD(model.parameters(), training.learning_rate, training.momentum, training.weight_decay)
    steps = training.local_steps(len(data)) if len(fixed) else 0
    model.train()
    mean = train_steps(
        loss,
        optimizer,
        steps,
        name="local training",
        accumulate=training.accumulate_steps,
        max_grad_norm=training.max_grad_norm,
    )
    metrics = drop_none(loss=mean, confident=len(fixed) / len(data))
    return aggregations.make_reply(workload, message, context, model.state_dict(), metrics, data)


def confident(p: Tensor, options: Options) -> Tensor:
    """Return True for examples whose largest probability reaches the threshold of its class (examples,).

    Parameters
    ----------
    p
        Probabilities (examples, classes).
    """
    best, labels = p.max(1)
    if options.thresholds == "fixed":
        return best >= options.threshold
    by_class = p.mean(0)
    return best >= best.mean() * (by_class / by_class.max())[labels]


SPEC: StrategySpec = StrategySpec(
    Options, AdaptingServer(server), ClientFunctions(train, evaluate), ignores=CLIENT_OPTIMIZER, phases=PHASES
)
