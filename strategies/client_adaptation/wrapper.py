"""A strategy whose clients adapt after the last round, made of the strategy and a method.

In the last round a client trains as the strategy says, then it adapts the G that it would predict with, and saves the
model as its state; in the other rounds it saves an empty state. Nothing more is sent. The last round of a run that
``stop.metric`` ends counts as such. A client that does not take part in the last round, or whose run a budget ends
earlier, predicts as without adaptation.

**Metrics** of each client that has adapted, on its test data: the workload's of its ``personal`` model, beside those of
the strategy; and what the method reports, without a label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.errors import ConfigError
from fedlab.metrics import Phase
from fedlab.models.feature_classifier import check_parts, features_of, head_of
from fedlab.runs.client_state import CLIENT
from fedlab.seeds import seeded
from fedlab.strategies.client_adaptation.spec import AdaptationSpec, Client
from fedlab.strategies.personal import PERSONAL_METRICS
from fedlab.strategies.protocol import (
    ARRAYS,
    CONFIG,
    METRICS,
    ClientContext,
    ClientFunctions,
    ModelStates,
    ServerStrategy,
    StrategySpec,
    client_dataset,
    is_final,
    round_of,
)
from fedlab.training import Progress
from fedlab.workload import SupportsEpisodes, SupportsViews, Workload, blank_model

View = Callable[[Tensor], Tensor]
STATES, REPORT = "states", "report"  # of the client's state
FEATURES = "features."  # prefix of G's arrays in a model's state
STREAM = "client adaptation"
PHASE = Phase(
    "adapt",
    "clients adapt",
    logged=True,
    note="last round: each client now also trains features of its own, which takes longer than the rounds before",
)


@dataclass(frozen=True)
class AdaptingClient:
    """Client side of a strategy with adaptation after the last round.

    Attributes
    ----------
    inner
        The strategy's client side.
    method
        How the client adapts.
    """

    inner: ClientFunctions
    method: AdaptationSpec

    def functions(self) -> ClientFunctions:
        """Return the client side for the strategy's specification."""
        return replace(
            self.inner,
            train=self.train,
            evaluate=self.evaluate,
            prediction_states=self.prediction_states,
            states_from_checkpoint=self.states_from_checkpoint,
            train_many=None,
        )

    def train(self, workload: Workload, message: Message, context: ClientContext) -> RecordDict:
        """Train as the strategy says, and adapt in the last round; the reply is the strategy's."""
        reply = self.inner.train(workload, message, context)
        server_round, run, state = round_of(message), context.config.run, dict[str, Any]()
        config = message.content[CONFIG]
        assert isinstance(config, ConfigRecord)
        if is_final(server_round, run.rounds, config):
            known = Message(RecordDict({**message.content, **reply}), reply_to=message)
            states = self.inner.prediction_states(workload, known, context)
            with seeded(run.seed, STREAM, server_round, context.partition):
                state = self.adapt(workload, states, context)
        context.state.save(server_round, state)
        return reply

    def adapt(self, workload: Workload, states: ModelStates, context: ClientContext) -> dict[str, Any]:
        """Return a client's new state: the arrays that it predicts with, and the method's report."""
        model = self.inner.predictor(workload, states).to(context.device)
        data = client_dataset(workload, context, "train").on_device(context.device)
        parts, views = (features_of(model).eval(), head_of(model).eval()), views_of(workload)
        client = Client(*parts, data, *views, context.device, context.progress, context.config.run.cuda_graphs)
        adapted = self.method.adapt(client, context.config.adaptation)
        own = {FEATURES + name: tensor for name, tensor in adapted.features.state_dict().items()}
        return {STATES: {**states, ARRAYS: {**states[ARRAYS], **own}}, REPORT: dict(adapted.report)}

    def evaluate(self, workload: Workload, message: Message, context: ClientContext) -> RecordDict:
        """Return the strategy's metrics and, once the client has adapted, those of its personal model."""
        reply = self.inner.evaluate(workload, message, context)
        own, metrics = context.state.load(round_of(message) + 1), reply[METRICS]
        assert isinstance(metrics, MetricRecord)
        if own and len(metrics) > 1:  # a client that reports the number of its examples alone keeps all else to itself
            model = self.inner.predictor(workload, own[STATES]).to(context.device)
            found = workload.evaluate(model, client_dataset(workload, context, "test"))
            metrics.update({f"{name}_personal": value for name, value in found.items() if name != "loss"})
            metrics.update(own[REPORT])
        return reply

    def prediction_states(self, workload: Workload, message: Message, context: ClientContext) -> ModelStates:
        """Return the arrays of the client's own model, before it has one those of the strategy."""
        own = context.state.load(round_of(message) + 1)
        return dict(own[STATES]) if own else self.inner.prediction_states(workload, message, context)

    def states_from_checkpoint(
        self, workload: Workload, checkpoint: Mapping[str, Any], partition: int, config: Config
    ) -> ModelStates:
        """Return the same from a checkpoint; the strategy's if the client's state is not on this machine."""
        own = checkpoint.get(CLIENT)
        return dict(own[STATES]) if own else self.inner.states_from_checkpoint(workload, checkpoint, partition, config)


@dataclass(frozen=True)
class AdaptingServer:
    """Maker of the strategy's server side, for a workload whose clients can adapt."""

    inner: Callable[[Workload, Config, Progress], ServerStrategy]

    def __call__(self, workload: Workload, config: Config, progress: Progress) -> ServerStrategy:
        """Return the strategy's server side.

        Raises
        ------
        ConfigError
            When the model has no G and F, or the clients' classes are not the server's.
        """
        model = blank_model(workload)
        check_parts(model, config.run.strategy, config.run.workload)
        if isinstance(workload, SupportsEpisodes):
            raise ConfigError(
                f"clients adapt to the server's classes, and workload {config.run.workload!r} tests classes that the "
                "server has never seen; use startup, self_training or source_only"
            )
        if not any(True for _ in features_of(model).parameters()):
            raise ConfigError(
                f"clients train the features when they adapt, and the model of workload {config.run.workload!r} has "
                "none to train, since its backbone is frozen; use dualadapt without client_adapt, or train some of "
                "its stages, or a layer between it and the head"
            )
        with seeded("two inputs"), torch.no_grad():
            rows = len(features_of(model.eval())(workload.data(None, "train")[torch.arange(2)]["x"]))
        if rows != 2:
            raise ConfigError(
                f"clients label whole inputs when they adapt, and the model of workload {config.run.workload!r} has "
                f"{rows // 2} rows of features for each; use source_only, or dualadapt without client_adapt"
            )
        return self.inner(workload, config, progress)


def with_adaptation(spec: StrategySpec, method: AdaptationSpec) -> StrategySpec:
    """Return the strategy with adaptation of its clients after the last round."""
    return replace(
        spec,
        server=AdaptingServer(spec.server),
        client=AdaptingClient(spec.client, method).functions(),
        client_state=True,
        final_phase=PHASE.name,
        adaptation=method,
        metrics=(*spec.metrics, *PERSONAL_METRICS[1:], *method.metrics),
        phases=(*spec.phases, PHASE),
    )


def as_strategy(spec: StrategySpec, method: AdaptationSpec) -> StrategySpec:
    """Return the same as a strategy of its own, whose options are the method's."""
    return replace(with_adaptation(spec, method), options=method.options, baseline=False)


def views_of(workload: Workload) -> tuple[View, View]:
    """Return the functions that make a random view and a weak one; of a workload without views, inputs as they are."""
    if isinstance(workload, SupportsViews):
        return workload.view, partial(workload.view, weak=True)
    return torch.clone, torch.clone
