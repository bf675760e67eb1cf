"""Local training of a whole model, in three steps: what to do, the loop, and what to answer.

:func:`prepare` gathers in a :class:`LocalWork` all that the loop depends on, :func:`run` is the loop, and a strategy's
reply is made of its :class:`Trained`. What runs many clients at once takes the place of :func:`run` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from flwr.app import Message, RecordDict
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.cuda_graphs import GraphedLoss, kept_models
from fedlab.data.dataset import ArrayDataset, to_device
from fedlab.errors import ConfigError
from fedlab.optimizers import OptimizerSettings
from fedlab.precision import current_precision
from fedlab.strategies.protocol import ARRAYS, ClientContext, arrays_of, check_state, client_dataset, load, loaded_model
from fedlab.training import MovingAverage, resolve_device, to_training_device, train_steps
from fedlab.workload import Workload, blank_model, missing_columns

Tensors = Mapping[str, Tensor]
# Weights by name, the same at the start, and extra tensors by name -> a scalar that is added to the loss. A pure
# function, so that it can be mapped over clients; compared by ==, so a dataclass with __call__ rather than a closure.
Penalty = Callable[[Tensors, Tensors, Tensors], Tensor]

PHASE = "local training"


@dataclass(frozen=True)
class LocalWork:
    """The local training of one client in one round.

    Attributes
    ----------
    start
        State that was sent, with the names and shapes of the workload's model. It is only read.
    device
        Where to train.
    data
        Examples with every column that the workload's loss reads.
    steps, batch_size
        Number of steps, and examples of a batch, drawn with replacement.
    optimizer
        The optimizer, fresh in each round.
    accumulate
        Batches of a step.
    ema_decay
        Decay of a moving average of the weights, which is then the result; 0: none.
    penalty
        A term to add to the workload's loss, see :data:`Penalty`.
    extra
        Tensors by name that the penalty reads.
    frozen
        Names of weights that stay as they are.
    compile
        Compile the model on a GPU.
    cuda_graphs
        Launch the kernels of a step at once on a GPU.
    """

    start: Tensors
    device: torch.device
    data: ArrayDataset
    steps: int
    batch_size: int
    optimizer: OptimizerSettings
    ema_decay: float = 0.0
    penalty: Penalty | None = None
    extra: Tensors = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    accumulate: int = 1
    compile: bool = False
    cuda_graphs: bool = True


@dataclass(frozen=True)
class Trained:
    """Result of local training.

    Attributes
    ----------
    state
        State of the trained model, or of the average of its weights.
    loss
        Mean loss over the steps, None without steps.
    """

    state: Tensors
    loss: float | None


def prepare(
    workload: Workload, message: Message, context: ClientContext, data: ArrayDataset | None = None
) -> LocalWork:
    """Return the local training that ``client.*`` and the message ask for.

    Parameters
    ----------
    data
        The examples; None: the client's own training data.

    Raises
    ------
    ConfigError
        When the examples lack a column that the loss reads.
    DataError
        When the client's data is missing or damaged.
    IncompatibleWeightsError
        When the message has the weights of another model.
    """
    core, options = context.config.run, context.config.client
    data = client_dataset(workload, context, "train") if data is None else data
    common = _common(workload, message, context.config)
    if missing := missing_columns(workload, data):
        raise ConfigError(
            "this strategy trains on a client's own labels, and this client's training data has none"
            if missing == ["y"]
            else f"this client's training data lacks {', '.join(missing)}, which the workload's loss takes"
        )
    return LocalWork(
        common.start,
        common.device,
        data,
        options.local_steps(len(data)),
        options.batch_size,
        common.optimizer,
        options.ema_decay,
        accumulate=options.accumulate_steps,
        compile=core.compile,
        cuda_graphs=core.cuda_graphs,
    )


@dataclass(frozen=True)
class _Common:
    """Settings and arrays that clients of one message and one configuration share."""

    record: ref[Any]
    workload: Workload
    config: Config
    start: Tensors
    device: torch.device
    optimizer: OptimizerSettings


def _common(workload: Workload, message: Message, config: Config) -> _Common:
    """Return what a client shares with others, which is found once for all that train at once."""
    record = message.content[ARRAYS]
    found = _last[0] if _last else None
    if found is None or found.record() is not record or found.workload is not workload or found.config is not config:
        start, own = arrays_of(message.content), config.client
        check_state(workload, start)
        settings = OptimizerSettings(
            own.optimizer, own.learning_rate, own.momentum, own.weight_decay, own.max_grad_norm
        )
        asked = ref(record, lambda _: _last.clear())  # so that no arrays are kept for nobody
        found = _Common(asked, workload, config, start, resolve_device(config.run.device), settings)
        _last[:] = [found]
    return found


_last: list[_Common] = []


Prepare = Callable[[Workload, Message, ClientContext], LocalWork]
Reply = Callable[[Workload, Message, ClientContext, LocalWork, Trained], RecordDict]


def run(workload: Workload, work: LocalWork) -> Trained:
    """Train the model, on batches from torch's current random stream.

    Raises
    ------
    RunError
        When the loss is not finite.
    """
    device = work.device
    objective, data = trained_model(workload, work), work.data.on_device(device)
    model = objective.model
    weights = dict(model.named_parameters())
    start = {name: weight.detach().clone() for name, weight in weights.items()} if work.penalty else {}
    extra = {name: tensor.to(device) for name, tensor in work.extra.items()}

    def loss() -> Tensor:
        value = objective(to_device(data.sample_batch(work.batch_size), device))
        return value + work.penalty(weights, start, extra) if work.penalty else value

    average = deepcopy(model) if work.ema_decay else model
    mean = train_steps(
        loss,
        work.optimizer.build(weights.values()),
        work.steps,
        name=PHASE,
        accumulate=work.accumulate,
        max_grad_norm=work.optimizer.max_grad_norm,
        after_step=MovingAverage(average, model, work.ema_decay).update if work.ema_decay else None,
    )
    state = average.state_dict()
    return Trained(state if device.type == "cpu" else {name: value.clone() for name, value in state.items()}, mean)


def trained_model(workload: Workload, work: LocalWork) -> GraphedLoss:
    """Return the workload's loss with a model to train, which has the weights that were sent.

    On a GPU the model of the last client is taken again, with the graph of its step.
    """

    def objective_of(model: nn.Module) -> GraphedLoss:
        for name in work.frozen:
            model.get_parameter(name).requires_grad_(False)
        return GraphedLoss(workload.loss, model, work.cuda_graphs)

    if work.device.type == "cpu":
        return objective_of(loaded_model(workload, work.start, work.device).train())

    def make() -> GraphedLoss:
        return objective_of(to_training_device(blank_model(workload), work.device, work.compile))

    options = work.frozen, work.compile, work.cuda_graphs, current_precision()
    objective = kept_models.get((repr(workload), work.device, *options), make)
    load(objective.model, work.start, work.device).train()
    return objective
