"""Personal models: what strategies share whose clients predict with a model of their own beside the global one.

A strategy says how a client's model is made of the arrays that the server sent and of the client's own state
(``ClientContext.state``). A client without a state, because it has not trained yet, predicts with the global model.

**Metrics** of each client, on its test data: the workload's of the ``global`` model and of the ``personal`` one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict

from fedlab.config.schema import Config
from fedlab.metrics import Metric
from fedlab.runs.client_state import CLIENT, State
from fedlab.strategies.local_training import Tensors
from fedlab.strategies.protocol import (
    ARRAYS,
    METRICS,
    ClientContext,
    ClientFn,
    ClientFunctions,
    ModelStates,
    arrays_of,
    client_dataset,
    loaded_model,
    metrics_record,
    round_of,
)
from fedlab.workload import Workload

# The global model's arrays and the client's state -> arrays of its personal model, all of them by name.
Personalize = Callable[[Tensors, State], Tensors]

PERSONAL_METRICS = (
    Metric("*_global", order=2, note="the model of all clients"),
    Metric("*_personal", order=6, note="the client's own model"),
)


@dataclass(frozen=True)
class PersonalModel:
    """Testing and predicting with a personal model."""

    personalize: Personalize

    def evaluate(self, workload: Workload, message: Message, context: ClientContext) -> RecordDict:
        """Return the metrics of the global and of the personal model, each with its name appended."""
        data = client_dataset(workload, context, "test")
        models = {
            "global": arrays_of(message.content),
            "personal": self.prediction_states(workload, message, context)[ARRAYS],
        }
        found = {
            f"{metric}_{name}": value
            for name, arrays in models.items()
            for metric, value in workload.evaluate(loaded_model(workload, arrays, context.device), data).items()
        }
        return RecordDict({METRICS: metrics_record(found, len(data))})

    def prediction_states(self, workload: Workload, message: Message, context: ClientContext) -> ModelStates:
        """Return the arrays of the client's model after the round of the message."""
        return self._states(arrays_of(message.content), context.state.load(round_of(message) + 1))

    def states_from_checkpoint(
        self, workload: Workload, checkpoint: Mapping[str, Any], partition: int, config: Config
    ) -> ModelStates:
        """Return the same from a checkpoint; the global arrays if the client's state is not on this machine."""
        return self._states(checkpoint[ARRAYS], checkpoint.get(CLIENT))

    def _states(self, arrays: Tensors, own: State | None) -> ModelStates:
        return {ARRAYS: arrays if own is None else self.personalize(arrays, own)}


def personal_client(train: ClientFn, personalize: Personalize) -> ClientFunctions:
    """Return the client side of a strategy with personal models."""
    model = PersonalModel(personalize)
    return ClientFunctions(train, model.evaluate, model.prediction_states, model.states_from_checkpoint)
