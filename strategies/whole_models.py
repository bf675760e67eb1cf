"""Local training of whole models, of many clients at once: stacked models, and batches from each client's stream.

The parts before and after the steps are those of ``strategies/local_training.py``, or what a strategy has in the place
of its ``prepare`` and its reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from fedlab.data.dataset import Batch
from fedlab.seeds import Stream, seeded
from fedlab.strategies import local_training
from fedlab.strategies.drawn_ahead import DrawnAhead
from fedlab.strategies.local_training import PHASE, LocalWork, Prepare, Reply, Trained
from fedlab.strategies.protocol import ClientContext
from fedlab.strategies.vectorized import ClientError
from fedlab.vectorized.draws import draw
from fedlab.vectorized.stacked_model import StackedModel
from fedlab.vectorized.stacked_training import stack_batches, train_stacked
from fedlab.workload import SupportsBatchChecks, Workload, blank_model

COPIES = 6  # of the weights on a CPU: model, stack, gradient, at most two of the optimizer, one more of any


@dataclass(frozen=True)
class WholeModels:
    """The training of a strategy that answers with ``answer`` to the local training that ``begin`` returns."""

    begin: Prepare
    answer: Reply
    phase: str = PHASE

    def prepare(self, workload: Workload, message: Message, context: ClientContext) -> LocalWork:
        """Return the local training of one client."""
        return self.begin(workload, message, context)

    def run(self, workload: Workload, work: LocalWork) -> Trained:
        """Train one client, on batches from torch's current random stream."""
        return local_training.run(workload, work)

    def run_many(
        self, workload: Workload, works: Sequence[LocalWork], streams: Sequence[Stream]
    ) -> list[tuple[Trained, list[float]]]:
        """Train clients of one kind, those with the most steps first; return what became of each, and its losses.

        Raises
        ------
        NotVectorizable
            When an operation of the loss cannot be mapped over models.
        ClientError
            When a client's data cannot be read.
        """
        first = works[0]
        one = blank_model(workload).to(first.device).train()
        for name in first.frozen:
            one.get_parameter(name).requires_grad_(False)
        states, extra = [work.start for work in works], [work.extra for work in works]
        model = StackedModel(one, states, workload.loss, first.penalty, extra)
        steps, settings = [work.steps for work in works], [work.optimizer for work in works]
        feed = _Feed(workload, model, works, streams)
        trained, losses = train_stacked(model, feed, steps, settings, first.ema_decay, accumulate=first.accumulate)
        return [
            (Trained(state, sum(values) / len(values) if values else None), values)
            for state, values in zip(trained, losses, strict=True)
        ]

    def reply(
        self, workload: Workload, message: Message, context: ClientContext, work: LocalWork, result: Trained
    ) -> RecordDict:
        """Return the client's answer."""
        return self.answer(workload, message, context, work, result)

    def kind(self, work: LocalWork) -> str:
        """Return what stacked models, one optimizer but for its learning rate and batches of one shape depend on."""
        settings = replace(work.optimizer, learning_rate=0.0)
        columns = {name: (column.dtype, tuple(column.shape[1:])) for name, column in work.data.columns.items()}
        batches = work.batch_size, work.accumulate, sorted(columns.items())
        return repr((settings, batches, work.ema_decay, work.penalty, sorted(work.extra), sorted(work.frozen)))

    def subject(self, workload: Workload, work: LocalWork) -> str:
        """Return the workload and the penalty, which can or cannot be vectorized."""
        return f"{workload!r} {work.penalty!r}"

    def shortened(self, work: LocalWork) -> LocalWork:
        """Return the work with two steps at most."""
        return replace(work, steps=min(work.steps, 2))

    def resident(self, work: LocalWork) -> int:
        """Return the bytes of weights and what goes with them on a CPU; on a GPU its allocator sees them."""
        if work.device.type == "cuda":
            return 0
        return COPIES * sum(tensor.nbytes for tensor in work.start.values())


class _Feed:
    """Batches of many clients, each from its client's stream.

    For each batch of each step the loop draws the batch, and then what its loss draws.
    """

    def __init__(
        self, workload: Workload, model: StackedModel, works: Sequence[LocalWork], streams: Sequence[Stream]
    ) -> None:
        self.works, self.device = works, works[0].device
        self.check = workload.check_batch if isinstance(workload, SupportsBatchChecks) else None
        self.plan = model.record(self._trial()) if works[0].steps else []
        self.ahead = DrawnAhead(self._draw, _size, [work.steps * work.accumulate for work in works], streams)

    def _trial(self) -> Batch:
        """Return a first batch of some client, whose stream is not touched."""
        work = self.works[0]
        try:
            with seeded("a trial of the loss"):
                batch = work.data.sample_batch(work.batch_size)
        except Exception as error:
            raise ClientError(0, error) from error
        return {name: column.to(self.device) for name, column in batch.items()}

    def __call__(self, number: int, count: int) -> tuple[Batch, list[Tensor]]:
        """Return the ``number``-th batches of the first ``count`` clients, and the numbers that their losses draw."""
        batches, numbers = zip(*self.ahead(number, count), strict=True)
        stacked = [torch.stack(each).to(self.device) for each in zip(*numbers, strict=True)]
        return stack_batches(batches, self.device), stacked

    def _draw(self, position: int) -> tuple[Batch, list[Tensor]]:
        work = self.works[position]
        batch = work.data.sample_batch(work.batch_size)
        if self.check:
            self.check(batch)
        return batch, draw(self.plan)


def _size(drawn: tuple[Batch, list[Tensor]]) -> int:
    batch, numbers = drawn
    return sum(column.nbytes for column in (*batch.values(), *numbers))
