"""AdaBN: source only, and each client predicts with batch-norm statistics of its own unlabeled data.

**Source**: Li et al., Revisiting Batch Normalization for Practical Domain Adaptation, 2016
(``fedlab/models/batchnorm_stats.py``).

**Departures**: (1) ``bn_adaptation`` < 1 blends a client's statistics with the source's; (2) at most ``bn_images``
examples are read. No client trains, so only the model crosses the wire, and statistics never leave their client.

**Metrics**: as ``source_only``, whose steps and batches the server takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError, DataError
from fedlab.models.batchnorm_stats import adapt_batchnorm, batch_norms
from fedlab.strategies import source_only
from fedlab.strategies.protocol import (
    ARRAYS,
    CLIENT_STEPS,
    METRICS,
    ClientContext,
    ClientFunctions,
    ModelStates,
    StrategySpec,
    arrays_of,
    client_dataset,
    load,
    metrics_record,
)
from fedlab.strategies.source_only import PHASES
from fedlab.training import Progress, resolve_device
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """AdaBN's options."""

    bn_adaptation: float = Field(1.0, ge=0, le=1, description="weight of a client's own statistics; 0: the source's")
    bn_images: int = Field(1000, ge=2, description="images of a client that the statistics are taken from")


def server(workload: Workload, config: Config, progress: Progress) -> source_only.SourceOnly:
    """Return the server side of source only.

    Raises
    ------
    ConfigError
        When the workload has no inputs ``x``, or its model no batch norms.
    """
    strategy = source_only.SourceOnly(workload, config, progress)
    trainer = strategy.trainer
    if "x" not in trainer.source.columns:
        raise ConfigError(
            f"adabn takes statistics of inputs x; workload {config.run.workload!r} has "
            f"{', '.join(trainer.source.columns)}; use source_only"
        )
    if not batch_norms(trainer.model):
        raise ConfigError(
            f"adabn needs a model with batch norms; {type(trainer.model).__name__} of workload "
            f"{config.run.workload!r} has none; use source_only"
        )
    return strategy


def evaluate(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Return the metrics of the model with the client's own statistics, on its test data."""
    device = context.device
    arrays = prediction_states(workload, message, context)[ARRAYS]
    data = client_dataset(workload, context, "test")
    return RecordDict(
        {METRICS: metrics_record(workload.evaluate(load(workload.model(), arrays, device), data), len(data))}
    )


def prediction_states(workload: Workload, message: Message, context: ClientContext) -> ModelStates:
    """Return the model's arrays with this client's own statistics."""
    own = client_dataset(workload, context, "train")
    return with_local_stats(workload, arrays_of(message.content), own, context.config)


def states_from_checkpoint(
    workload: Workload, checkpoint: Mapping[str, Any], partition: int, config: Config
) -> ModelStates:
    """Return the same from a checkpoint; with the source's statistics if the client's data is not on this machine."""
    own = None
    with suppress(DataError):
        own = workload.data(partition, "train")
    return with_local_stats(workload, checkpoint[ARRAYS], own, config)


def with_local_stats(
    workload: Workload, arrays: Mapping[str, Tensor], own: ArrayDataset | None, config: Config
) -> ModelStates:
    """Return a model's arrays with the statistics of examples, or unchanged if there are none."""
    options, device = config.strategy, resolve_device(config.run.device)
    model = load(workload.model(), arrays, device)
    if own is not None:
        adapt_batchnorm(model, own, options.bn_images, options.bn_adaptation, device)
    return {ARRAYS: {name: tensor.cpu() for name, tensor in model.state_dict().items()}}


SPEC: StrategySpec = StrategySpec(
    Options,
    server,
    ClientFunctions(source_only.train, evaluate, prediction_states, states_from_checkpoint),
    phases=PHASES,
    upload="nothing",
    ignores=CLIENT_STEPS,
)
