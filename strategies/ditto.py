"""Ditto: each client has a personal model, trained on its own data and held near the global one.

**Source**: Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021, algorithm 1. The
global weights w are those of FedAvg, or of another rule. Beside that, client k takes as many steps on its own v_k:
v_k <- v_k - eta (g_k(v_k) + lambda (v_k - w_t)), with w_t as it was sent in this round. v_k begins at the w_t of the
client's first round. Reference: github.com/litian96/ditto.

**State of a client**: v_k. **An absent client** keeps v_k as it is; in its next round v_k goes on towards the w_t of
that round.

**Departures**: (1) the personal steps follow the global ones, on batches of their own, so the global model is that of
FedAvg to the bit; the reference takes both on one batch; (2) v_k has the optimizer of ``client.*``, fresh each round,
not plain SGD; (3) lambda is given, not chosen by each client on validation data; (4) those of FedAvg.

**Metrics**: those of ``strategies/personal.py``; ``loss`` is that of the global model's steps.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import replace

import torch
from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.runs.client_state import State
from fedlab.strategies import fedavg
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.local_training import LocalWork, Tensors, prepare, run
from fedlab.strategies.personal import PERSONAL_METRICS, personal_client
from fedlab.strategies.protocol import SERVER_STEPS, ClientContext, StrategySpec, round_of
from fedlab.workload import Workload

MODEL = "model"  # v_k, in the client's state


@dataclass(frozen=True)
class Options:
    """Ditto's options."""

    lam: float = Field(
        1.0,
        ge=0.0,
        allow_inf_nan=False,
        description="how strongly a personal model is held near the global one (lambda); 0: local training",
    )
    aggregation: Aggregation = "fedavg"


@plain_dataclass(frozen=True)
class Anchor:
    """The function lambda / 2 ||v - w_t||^2 of the personal weights, with w_t in ``extra``."""

    lam: float

    def __call__(self, weights: Tensors, start: Tensors, extra: Tensors) -> Tensor:
        """Return the term, a scalar."""
        return self.lam / 2 * torch.stack([(weights[name] - extra[name]).square().sum() for name in weights]).sum()


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Train the global model as in FedAvg, then the personal one; the reply is FedAvg's."""
    work = prepare(workload, message, context)
    personal = personal_work(work, message, context)
    trained = run(workload, work)
    context.state.save(round_of(message), {MODEL: run(workload, personal).state})
    return fedavg.reply(workload, message, context, work, trained)


def personal_work(work: LocalWork, message: Message, context: ClientContext) -> LocalWork:
    """Return the training of v_k."""
    own = context.state.load(round_of(message))
    start: Tensors = own[MODEL] if own else work.start
    lam = context.config.strategy.lam
    return replace(work, start=start, penalty=Anchor(lam) if lam else None, extra=work.start if lam else {})


def personalize(sent: Tensors, own: State) -> Tensors:
    """Return the personal model v_k."""
    found: Tensors = own[MODEL]
    return found


SPEC: StrategySpec = StrategySpec(
    Options,
    fedavg.FedAvg,
    personal_client(train, personalize),
    needs_client_labels=True,
    client_state=True,
    metrics=PERSONAL_METRICS,
    ignores=SERVER_STEPS,
)
