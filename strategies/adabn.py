"""AdaBN: source only, and each client predicts with batch-norm statistics of its own unlabelled data.

**Source**: Li et al., Revisiting Batch Normalization for Practical Domain Adaptation, 2016
(``fedlab/models/batchnorm_stats.py``).

**Departures**: (1) ``share`` < 1 keeps some of the source's statistics; (2) at most ``images`` examples are looked
at. No client trains, so nothing but the model crosses the wire, and what a client's statistics are it keeps to
itself.

**Metrics**: as ``source_only``, whose steps and batches the server takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from flwr.app import Context, Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Core, Flat, build
from fedlab.data.dataset import Examples
from fedlab.errors import ConfigError, DataError
from fedlab.models.batchnorm_stats import adopt_statistics, batch_norms
from fedlab.strategies import source_only
from fedlab.strategies.protocol import (
    ARRAYS,
    METRICS,
    ClientHalf,
    Entry,
    States,
    arrays_of,
    load,
    metrics_record,
    own_data,
)
from fedlab.strategies.source_only import PHASES
from fedlab.training import Progress, pick_device
from fedlab.workload import Workload


@dataclass(frozen=True)
class Knobs:
    """AdaBN's knobs."""

    share: float = Field(1.0, ge=0, le=1, description="share of a client's own in the statistics; 0: the source's")
    images: int = Field(1000, ge=2, description="images of a client that the statistics are taken from")


class AdaBN(source_only.SourceOnly):
    """Server half: source only."""

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        super().__init__(workload, flat, progress)
        if "x" not in self.trainer.source.columns:
            raise ConfigError(
                f"adabn takes statistics of inputs x; workload {build(Core, '', flat).workload!r} has "
                f"{', '.join(self.trainer.source.columns)}; use source_only"
            )
        if not batch_norms(self.trainer.model):
            raise ConfigError(
                f"adabn needs a model with batch norms; {type(self.trainer.model).__name__} of workload "
                f"{build(Core, '', flat).workload!r} has none; use source_only"
            )


def evaluate(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Client half of testing: metrics with the client's own statistics."""
    device = pick_device(build(Core, "", context.run_config).device)
    arrays = states(workload, message, context)[ARRAYS]
    data = own_data(workload, context, "test")
    return RecordDict(
        {METRICS: metrics_record(workload.evaluate(load(workload.model(), arrays, device), data), len(data))}
    )


def states(workload: Workload, message: Message, context: Context) -> States:
    """What predicts on this client: the model with its own statistics."""
    own = own_data(workload, context, "train")
    return adapted(workload, arrays_of(message.content), own, context.run_config)


def recalled(workload: Workload, checkpoint: Mapping[str, Any], partition: int, flat: Flat) -> States:
    """The same from the server's checkpoint; the source's statistics where the client's data is not here."""
    own = None
    with suppress(DataError):
        own = workload.data(partition, "train")
    return adapted(workload, checkpoint[ARRAYS], own, flat)


def adapted(workload: Workload, arrays: Mapping[str, Tensor], own: Examples | None, flat: Flat) -> States:
    """A model's arrays with the statistics of some examples."""
    knobs, device = build(Knobs, "adabn", flat), pick_device(build(Core, "", flat).device)
    model = load(workload.model(), arrays, device)
    if own is not None:
        adopt_statistics(model, own, knobs.images, knobs.share, device)
    return {ARRAYS: {name: tensor.cpu() for name, tensor in model.state_dict().items()}}


ENTRY: Entry = Entry(
    "source only, with batch-norm statistics of each client's own (Li 2016)",
    Knobs,
    AdaBN,
    ClientHalf(source_only.train, evaluate, states, recalled),
    phases=PHASES,
)
