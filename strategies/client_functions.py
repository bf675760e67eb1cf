"""Client side of a strategy: pure functions of workload, message and context, with defaults for most of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from flwr.app import Message, RecordDict
from torch import nn

from fedlab.comm.stacked_replies import StackedContent
from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset
from fedlab.runs.client_state import NO_STATE, ClientState
from fedlab.strategies.model_states import load
from fedlab.strategies.records import ARRAYS, METRICS, arrays_of, metrics_record
from fedlab.training import Progress, null_progress, resolve_device
from fedlab.vectorized.memory import ClientMemory
from fedlab.workload import Workload


@dataclass(frozen=True)
class ClientContext:
    """The client of a message.

    Attributes
    ----------
    partition
        Its partition of the data.
    config
        Configuration of the run, with the settings of this machine merged into it.
    state
        Its own state, where the strategy declares one.
    progress
        Reports steps of its training: phase, steps done, steps in all.
    """

    partition: int
    config: Config
    state: ClientState = NO_STATE
    progress: Progress = null_progress

    @property
    def device(self) -> torch.device:
        """Torch device that this client computes on."""
        return resolve_device(self.config.run.device)


ClientFn = Callable[[Workload, Message, ClientContext], RecordDict]
ModelStates = dict[str, Mapping[str, torch.Tensor]]  # record name -> state of a module


class ManyClientsFn(Protocol):
    """The training of many clients at once, and the memory that it takes."""

    def __call__(
        self, workload: Workload, messages: Sequence[Message], contexts: Sequence[ClientContext]
    ) -> list[RecordDict | StackedContent | Exception]:
        """Return each client's reply, or the exception that it raised; replies may be stacked."""
        ...

    def memory(self, workload: Workload, message: Message, context: ClientContext) -> ClientMemory:
        """Return the memory of so many clients like this one."""
        ...


def client_dataset(workload: Workload, context: ClientContext, split: str) -> ArrayDataset:
    """Return the examples of the client that the context belongs to; ``split`` is "train" or "test".

    Raises
    ------
    DataError
        When the data is missing or damaged.
    """
    return workload.data(context.partition, split)


def evaluate(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Return the workload's metrics of the model that was sent, on the client's test data."""
    model = load(workload.model(), arrays_of(message.content), context.device)
    data = client_dataset(workload, context, "test")
    return RecordDict({METRICS: metrics_record(workload.evaluate(model, data), len(data))})


def from_message(workload: Workload, message: Message, context: ClientContext) -> ModelStates:
    """Return the arrays that a client predicts with after its evaluation: those of the message."""
    return {ARRAYS: arrays_of(message.content)}


def from_checkpoint(workload: Workload, checkpoint: Mapping[str, Any], partition: int, config: Config) -> ModelStates:
    """Return the arrays that a client predicts with, from the server's checkpoint: the global arrays."""
    return {ARRAYS: checkpoint[ARRAYS]}


def no_example_weights(state: Mapping[str, Any], partition: int, features: torch.Tensor) -> torch.Tensor | None:
    """Return None: the strategy does not weight examples."""
    return None


def full_model(workload: Workload, states: ModelStates) -> nn.Module:
    """Return the workload's model with these arrays, which maps inputs ``x`` to logits (batch, classes)."""
    return load(workload.model(), states[ARRAYS], torch.device("cpu")).eval()


@dataclass(frozen=True)
class ClientFunctions:
    """Client side of a strategy: pure functions of workload, message and context.

    Attributes
    ----------
    train, evaluate
        Answer a training or an evaluation message.
    prediction_states
        Returns the arrays that a client stores after an evaluation message, in order to predict with them.
    states_from_checkpoint
        Returns the same from the server's checkpoint, for one partition; its entry ``client`` is that client's own
        state, None where it has none on this machine.
    predictor
        Returns the module that predicts, from either.
    example_weights
        For reports only: from the strategy's state in a checkpoint, a partition and features (rows, width), the weights
        (rows,) in [0, 1] that the strategy gives such examples for that client; None where it weights none.
    train_many
        Answers the training messages of many clients at once, to rounding as ``train`` does one by one; it opens each
        client's random stream itself. None where the strategy cannot.
    """

    train: ClientFn
    evaluate: ClientFn
    prediction_states: Callable[[Workload, Message, ClientContext], ModelStates] = from_message
    states_from_checkpoint: Callable[[Workload, Mapping[str, Any], int, Config], ModelStates] = from_checkpoint
    predictor: Callable[[Workload, ModelStates], nn.Module] = full_model
    example_weights: Callable[[Mapping[str, Any], int, torch.Tensor], torch.Tensor | None] = no_example_weights
    train_many: ManyClientsFn | None = None
