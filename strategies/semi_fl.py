"""SemiFL: the server fine-tunes on labels, clients label everything with the fresh model, and learn with mixup.

**Source**: Diao et al., SemiFL: Semi-Supervised Federated Learning for Unlabeled Clients with Alternate Training,
NeurIPS 2022, algorithm 1; (FL)^2: Seo et al., (FL)^2: Overcoming Few Labels in Federated Semi-Supervised Learning,
NeurIPS 2024, algorithm 1::

    1  server: steps on the labeled source, then broadcast the model
    2  client: p <- probabilities of the received model for all x;  fix <- those with max p >= threshold, labeled
    3    mix <- examples drawn from all x, with their labels
    4    every step, l ~ Beta(mixup, mixup):  x_mix = l x_fix + (1 - l) x_mix
    5      argmin  CE(f(view(x_fix)), y_fix)  +  l CE(f(view(x_mix)), y_fix) + (1 - l) CE(f(view(x_mix)), y_mix)
    6  server: mean of the clients' models (``aggregation=fedavgm`` gives the published momentum)

**(FL)^2** is ``thresholds=adaptive weights=threshold consistency=1 mixup=0``:

- ``thresholds=adaptive``: a client's threshold is the mean of its own largest probabilities and, by class, that times
  the class's mean probability over the largest such mean (equations 7 to 9);
- ``weights=threshold``: a client weighs 1 minus the mean of its largest probabilities in line 6, so that one that has
  learned less counts more (equation 15);
- ``consistency``: weight of a further term of line 5, sharpness-aware consistency (equations 11 to 13), see
  ``losses/sharpness.py``; it counts examples of the batch whose largest probability is at least ``threshold``, and
  perturbs weights by ``perturbation``. ``mixup=0`` leaves out the second term of line 5.

**Departures**: (1) optimizers and numbers of steps are the run's (``server.*``, ``client.*``), the same for every
strategy; (2) batch norms are averaged as they are, not static; (3) a client without confident predictions returns the
model that it received; (4) labels are made of the inputs as they are, not of weak views; (5) strong views are the
workload's, not RandAugment's; (6) a batch is drawn with replacement.

**Metrics**: as FedAvg; clients also report ``confident``, the fraction of examples in ``fix``, and with
``weights=threshold`` the number that they are weighed by, ``threshold``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Literal

import torch
from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.schema import Config
from fedlab.config.sections import NonNegativeFloat, PositiveFloat
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.losses.sharpness import sharpness_consistency
from fedlab.models.batchnorm_stats import encode
from fedlab.optimizers import SGD
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import validation
from fedlab.strategies.aggregation import Aggregation, ClientUpdate
from fedlab.strategies.alternating import Alternating, check_classes
from fedlab.strategies.client_adaptation.wrapper import AdaptingServer, View, views_of
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
    mixup: NonNegativeFloat = Field(0.75, description="both parameters of mixup's Beta distribution; 0: no mixup")
    consistency: NonNegativeFloat = Field(0.0, description="weight of sharpness-aware consistency; 0: off")
    perturbation: PositiveFloat = Field(0.1, description="of consistency: relative size of a change of the weights")
    aggregation: Aggregation = "fedavg"


class SemiFL(Alternating):
    """Server side: source steps in turn with the clients, whose mean may be weighted by what they have yet to learn."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        self.by_threshold = config.strategy.weights == "threshold"
        required = ["confident", *([THRESHOLD] if self.by_threshold else [])]
        super().__init__(workload, config, progress, required=required, optional=["loss"])
        check_classes(self.trainer, config)
        if self.by_threshold and not self.rule.uses_weights:
            plugin = config.plugins["strategy"]
            raise ConfigError(
                f"option '{plugin.section}.weights': with aggregation {config.plugins['aggregation'].reference!r} "
                f"clients do not weigh by a strategy's weights, so that {THRESHOLD!r} has no effect; use "
                f"{plugin.section}.weights=examples, or a weighted mean, as {plugin.section}.aggregation=fedavg"
            )

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

    def weighed_by(self) -> Mapping[str, float]:
        """Return the threshold, at 1 of which a client weighs nothing, and what the rule reads."""
        return {**super().weighed_by(), **({THRESHOLD: 1.0} if self.by_threshold else {})}

    def client_weight(self, update: ClientUpdate) -> float | None:
        """Return 1 - the client's mean largest probability, and next to nothing where that is 1."""
        return max(1 - update.metrics[THRESHOLD], LEAST_WEIGHT) if self.by_threshold else None


@plain_dataclass(frozen=True)
class LocalLoss:
    """Lines 3 to 5: the loss of a batch that it draws.

    Attributes
    ----------
    data, labels
        A client's examples and the classes (examples,) that the received model gives them.
    fixed, sure
        Rows of ``fix``; True (examples,) where the largest probability reaches ``threshold``.
    view
        Returns a strong view of inputs (batch, ...).
    """

    model: nn.Module
    data: ArrayDataset
    labels: Tensor
    fixed: Tensor
    sure: Tensor
    view: View
    batch_size: int
    options: Options

    def __call__(self) -> Tensor:
        """Return the loss of the next batch, a scalar."""
        rows, options, device = self._draw(self.fixed), self.options, self.labels.device
        x, y = self.data[rows]["x"], self.labels[rows.to(device)]
        mix = self._mix(x, y) if options.mixup else 0.0
        seen = self.view(x).to(device)
        logits = self.model(seen)
        loss: Tensor = cross_entropy(logits, y) + mix
        if not options.consistency:
            return loss
        sure = self.sure[rows.to(device)]
        return loss + options.consistency * sharpness_consistency(
            self.model, seen, logits, y, sure, options.perturbation
        )

    def _mix(self, x: Tensor, y: Tensor) -> Tensor:
        rows, device = self._draw(torch.arange(len(self.data))), self.labels.device  # line 3
        share = float(torch.distributions.Beta(self.options.mixup, self.options.mixup).sample())
        logits = self.model(self.view(share * x + (1 - share) * self.data[rows]["x"]).to(device))  # line 4
        other = self.labels[rows.to(device)]
        return share * cross_entropy(logits, y) + (1 - share) * cross_entropy(logits, other)

    def _draw(self, rows: Tensor) -> Tensor:
        return rows[torch.randint(len(rows), (self.batch_size,))]


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Run lines 2 to 5 on one client."""
    options, training, device = context.config.strategy, context.config.client, context.device
    data = client_dataset(workload, context, "train")
    model = loaded_model(workload, arrays_of(message.content), device)
    best, labels = (p := encode(model, data, device).softmax(1)).max(1)
    fixed, sure = confident(p, options).nonzero()[:, 0].cpu(), best >= options.threshold  # line 2
    loss = LocalLoss(model, data, labels, fixed, sure, views_of(workload)[0], training.batch_size, options)
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
    threshold = float(best.mean()) if options.weights == "threshold" else None
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
