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
the class's mean probability over the largest such mean. With ``weights=threshold`` a client weighs 1 minus the mean of
its largest probabilities in line 6, so that one that has learned less counts more. Both together are those two of
(FL)^2's three parts that are not about the loss; its sharpness-aware consistency is not here.

**Departures**: (1) optimizers and numbers of steps are the run's (``server.*``, ``client.*``), the same for every
strategy; (2) batch norms are averaged as they are, not static; (3) a client without confident predictions returns the
model that it received.

**Metrics**: as FedAvg; clients also report ``confident``, the fraction of examples in ``fix``, and with
``weights=threshold`` the number that they are weighed by, ``threshold``.
"""

from __future__ import annotations

from typing import Literal

import torch
from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedlab.config.schema import Config
from fedlab.config.sections import PositiveFloat
from fedlab.models.batchnorm_stats import encode
from fedlab.optimizers import SGD
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import validation
from fedlab.strategies.aggregation import Aggregation, ClientUpdate
from fedlab.strategies.alternating import Alternating, check_classes
from fedlab.strategies.client_adaptation.wrapper import AdaptingServer, views_of
from fedlab.strategies.protocol import (
    CLIENT_OPTIMIZER,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    arrays_of,
    client_dataset,
    client_metrics,
    drop_none,
    evaluate,
    loaded_model,
)
from fedlab.strategies.source_only import PHASES
from fedlab.training import Progress, train_steps
from fedlab.workload import Workload

THRESHOLD = "threshold"  # of a client's metrics: the mean of its largest probabilities
LEAST_WEIGHT = 1e-6  # of a client that is certain of everything: the sum of weights is never 0


@dataclass(frozen=True)
class Options:
    """SemiFL's options."""

    threshold: float = Field(0.95, ge=0.0, lt=1.0, description="least probability of a fixed pseudo-label")
    thresholds: Literal["fixed", "adaptive"] = Field(
        "fixed", description="fixed: the same for all; adaptive: by client and class, from their mean probabilities"
    )
    weights: Literal["examples", "threshold"] = Field(
        "examples", description="of clients in the mean: numbers of examples, or 1 - the mean of largest probabilities"
    )
    mixup: PositiveFloat = Field(0.75, description="both parameters of mixup's Beta distribution")
    aggregation: Aggregation = "fedavg"


class SemiFL(Alternating):
    """Server side: source steps in turn with the clients, whose mean may be weighted by what they have yet to learn."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        self.by_threshold = config.strategy.weights == "threshold"
        required = ["confident", *([THRESHOLD] if self.by_threshold else [])]
        super().__init__(workload, config, progress, required=required, optional=["loss"])
        check_classes(self.trainer, config)

    def check(self, reply: Message) -> None:
        """Refuse a reply that is not a model like the one that was sent, or a threshold that is no probability.

        Raises
        ------
        InvalidUpdate
            With what came and what was expected.
        """
        super().check(reply)
        if self.by_threshold and not 0 <= (found := client_metrics(reply)[THRESHOLD]) <= 1:
            raise validation.InvalidUpdate(f"its {THRESHOLD} is {found:g}; expected a number from 0 to 1")

    def client_weight(self, update: ClientUpdate) -> float | None:
        """Return 1 - the client's mean largest probability, and next to nothing where that is 1."""
        return max(1 - update.metrics[THRESHOLD], LEAST_WEIGHT) if self.by_threshold else None


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
    threshold = float(p.max(1).values.mean()) if options.weights == "threshold" else None
    metrics = drop_none(loss=mean, confident=len(fixed) / len(data), threshold=threshold)
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
    Options, AdaptingServer(SemiFL), ClientFunctions(train, evaluate), ignores=CLIENT_OPTIMIZER, phases=PHASES
)
