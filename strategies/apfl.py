"""APFL: each client mixes the global model with a local one, and trains the local one inside the mixture.

**Source**: Deng et al., Adaptive Personalized Federated Learning, 2020 (arXiv 2003.13461), algorithm 1. In each local
step, on one batch, client i moves the weights w_i that it will send along the gradient of f_i(w_i), as in FedAvg, and
its local weights v_i along the gradient with respect to v_i of f_i(m_i), m_i = a_i v_i + (1 - a_i) w_i, which is a_i
times the gradient of f_i at m_i. It predicts with m_i, where w is the global model. If a_i is adaptive (equation 10):
a_i <- a_i - eta <v_i - w_i, gradient of f_i at m_i> in the first step of a round, within [0, 1]. v_i begins at the
global weights of the client's first round.

**State of a client**: v_i, a_i, and batch-norm statistics of m_i. **An absent client** keeps all three; it predicts
with the newest w in its mixture.

**Departures**: (1) w_i and v_i have an optimizer of ``client.*`` each, fresh each round, not plain SGD; (2) those of
FedAvg. The authors' code (github.com/MLOPTPSU/FedTorch) mixes outputs; this is the paper's mixture of weights.

**Metrics**: those of ``strategies/personal.py``; ``loss`` is that of w_i.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.data.dataset import to_device
from fedlab.optimizers import OptimizerSettings
from fedlab.runs.client_state import State
from fedlab.strategies import fedavg
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.local_training import PHASE, LocalWork, Tensors, Trained, prepare
from fedlab.strategies.personal import PERSONAL_METRICS, personal_client
from fedlab.strategies.protocol import (
    CLIENT_BATCHES,
    SERVER_STEPS,
    ClientContext,
    StrategySpec,
    load,
    loaded_model,
    round_of,
)
from fedlab.training import MovingAverage, train_steps
from fedlab.workload import Workload

LOCAL, BUFFERS, ALPHA = "local", "buffers", "alpha"  # v_i, statistics of m_i and a_i, in the client's state


@dataclass(frozen=True)
class Options:
    """APFL's options."""

    alpha: float = Field(0.5, ge=0.0, le=1.0, description="weight of a client's local model in its mixture (alpha)")
    adaptive: bool = Field(False, description="each client moves its alpha by a gradient step a round")
    aggregation: Aggregation = "fedavg"


class Mixture:
    """The weights v and m of one client; also the optimizer of w and v together, as the training loop needs it.

    Parameters
    ----------
    model
        The model w, as it was sent.
    own
        The client's state; None: v begins at w.
    settings
        The optimizer.
    alpha
        Weight a of v where the state has none.
    adaptive
        True if the first step moves a.
    """

    def __init__(
        self, model: nn.Module, own: State | None, settings: OptimizerSettings, alpha: float, adaptive: bool
    ) -> None:
        self.settings, self.adaptive = settings, adaptive
        self.alpha = float(own[ALPHA]) if own else alpha
        self.mixed = deepcopy(model)
        if own:
            load(self.mixed, {**own[LOCAL], **own[BUFFERS]}, next(model.parameters()).device)
        self.pairs = list(zip(model.parameters(), self.mixed.parameters(), strict=True))  # of w and m
        self.local = [weight.detach().clone() for weight in self.mixed.parameters()]  # v
        self.optimizers = settings.build(model.parameters()), settings.build(self.local)
        self.param_groups: list[dict[str, Any]] = []

    @torch.no_grad()
    def mix(self) -> nn.Module:
        """Set m to a v + (1 - a) w, and return it."""
        for (w, m), v in zip(self.pairs, self.local, strict=True):
            m.copy_(mixed(w, v, self.alpha))
        return self.mixed

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.mixed.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """Move w along its gradient, v along a times that of m, and once a round a."""
        gradients = [torch.zeros_like(m) if m.grad is None else m.grad for _, m in self.pairs]
        alpha = self.alpha
        if self.adaptive:
            along = [(v - w) * g for (w, _), v, g in zip(self.pairs, self.local, gradients, strict=True)]
            slope = float(torch.stack([product.sum() for product in along]).sum())
            self.alpha, self.adaptive = min(max(alpha - self.settings.learning_rate * slope, 0.0), 1.0), False
        for v, gradient in zip(self.local, gradients, strict=True):
            v.grad = alpha * gradient
        if limit := self.settings.max_grad_norm:
            for weights in ([w for w, _ in self.pairs], self.local):
                nn.utils.clip_grad_norm_(weights, limit)
        for optimizer in self.optimizers:
            optimizer.step()

    def state(self) -> dict[str, Any]:
        """Return the client's new state."""
        names = [name for name, _ in self.mixed.named_parameters()]
        buffers = {name: value for name, value in self.mixed.state_dict().items() if name not in names}
        return {LOCAL: dict(zip(names, self.local, strict=True)), BUFFERS: buffers, ALPHA: self.alpha}


def mixed(w: Tensor, v: Tensor, alpha: float) -> Tensor:
    """Return alpha v + (1 - alpha) w, of two tensors of one shape."""
    return torch.lerp(w, v, alpha)


def run(workload: Workload, work: LocalWork, model: nn.Module, mixture: Mixture) -> Trained:
    """Perform the local steps on w and v, both on the same batch, and return w."""
    losses: list[Tensor] = []

    def loss() -> Tensor:
        batch = to_device(work.data.sample_batch(work.batch_size), work.device)
        value = workload.loss(model, batch)
        losses.append(value.detach())
        return value + workload.loss(mixture.mix(), batch)

    average = deepcopy(model) if work.ema_decay else model
    follow = MovingAverage(average, model, work.ema_decay).update if work.ema_decay else None
    train_steps(loss, mixture, work.steps, name=PHASE, after_step=follow)
    return Trained(average.state_dict(), float(torch.stack(losses).mean()) if losses else None)


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Train w and v, keep v, and return w."""
    work, options = prepare(workload, message, context), context.config.strategy
    own = context.state.load(round_of(message))
    model = loaded_model(workload, work.start, work.device).train()
    mixture = Mixture(model, own, work.optimizer, options.alpha, options.adaptive)
    trained = run(workload, work, model, mixture)
    context.state.save(round_of(message), mixture.state())
    return fedavg.reply(workload, message, context, work, trained)


def personalize(sent: Tensors, own: State) -> Tensors:
    """Return a v + (1 - a) w, with the mixture's own statistics."""
    weights = {name: mixed(sent[name], local, own[ALPHA]) for name, local in own[LOCAL].items()}
    return {**sent, **own[BUFFERS], **weights}


SPEC: StrategySpec = StrategySpec(
    Options,
    fedavg.FedAvg,
    personal_client(train, personalize),
    needs_client_labels=True,
    client_state=True,
    metrics=PERSONAL_METRICS,
    ignores=SERVER_STEPS | CLIENT_BATCHES,
)
