"""Local training of whole models, of many clients at once: stacked models, and batches from each client's stream.

The parts before and after the steps are those of ``strategies/local_training.py``, or what a strategy has in the place
of its ``prepare`` and its reply.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message, RecordDict

from fedlab.comm.stacked_replies import StackedContents
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.seeds import Stream, seeded
from fedlab.strategies import local_training
from fedlab.strategies.client_batches import Feed, GatheredBatches, MadeBatches
from fedlab.strategies.local_training import PHASE, LocalWork, Prepare, Reply, Trained
from fedlab.strategies.protocol import ClientContext
from fedlab.strategies.vectorized import ClientError
from fedlab.vectorized.draws import Draw
from fedlab.vectorized.stacked_model import StackedModel
from fedlab.vectorized.stacked_training import train_stacked
from fedlab.workload import SupportsBatchChecks, Workload, blank_model

# Messages, works, what became of each -> their replies; None where each client has to be asked for its own.
ReplyMany = Callable[[Sequence[Message], Sequence[LocalWork], Sequence[Trained]], StackedContents | None]
COPIES = 6  # of the weights on a CPU: model, stack, gradient, at most two of the optimizer, one more of any


@dataclass(frozen=True)
class WholeModels:
    """The training of a strategy that answers with ``answer`` to the local training that ``begin`` returns.

    ``answer_many`` gives the same answers of many clients at once, where the strategy has it.
    """

    begin: Prepare
    answer: Reply
    answer_many: ReplyMany | None = None
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
            When clients' data cannot be read.
        """
        first = works[0]
        one = blank_model(workload).to(first.device).train()
        for name in first.frozen:
            one.get_parameter(name).requires_grad_(False)
        states, extra = [work.start for work in works], [work.extra for work in works]
        model = StackedModel(one, states, workload.loss, first.penalty, extra)
        steps, settings = [work.steps for work in works], [work.optimizer for work in works]
        feed = _feed(workload, model, works, streams)
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

    def replies(
        self,
        workload: Workload,
        messages: Sequence[Message],
        contexts: Sequence[ClientContext],
        works: Sequence[LocalWork],
        results: Sequence[Trained],
    ) -> StackedContents | None:
        """Return the clients' answers at once, where the strategy and the results allow it."""
        return self.answer_many(messages, works, results) if self.answer_many else None

    def kind(self, work: LocalWork) -> Hashable:
        """Return what stacked models, one optimizer but for its learning rate and batches of one shape depend on."""
        own = work.optimizer
        settings = own.name, own.momentum, own.weight_decay, own.max_grad_norm
        columns = frozenset((name, column.dtype, column.shape[1:]) for name, column in work.data.stored.items())
        batches = work.batch_size, work.accumulate, columns
        penalty = repr(work.penalty) if work.penalty else None
        return settings, batches, work.ema_decay, penalty, frozenset(work.extra), frozenset(work.frozen)

    def subject(self, workload: Workload, work: LocalWork) -> str:
        """Return the workload and the penalty, which can or cannot be vectorized."""
        return f"{workload!r} {work.penalty!r}"

    def shortened(self, work: LocalWork) -> LocalWork:
        """Return the work with two steps at most."""
        return replace(work, steps=min(work.steps, 2))

    def resident(self, work: LocalWork) -> int:
        """Return the bytes of weights and what goes with them on a CPU.

        On a GPU its allocator sees them, but for the weights of the clients before, which wait there to be summed.
        """
        weights = sum(tensor.nbytes for tensor in work.start.values())
        return weights if work.device.type == "cuda" else COPIES * weights


def _feed(workload: Workload, model: StackedModel, works: Sequence[LocalWork], streams: Sequence[Stream]) -> Feed:
    """Return the batches of clients, each from its client's stream; the loss is tried with one of them.

    For each batch of each step the loop draws the batch, and then what its loss draws.

    Raises
    ------
    ClientError
        When data cannot be read, of the first client and of those that follow it.
    NotVectorizable
        When what the loss draws depends on values.
    """
    first, sets = works[0], [work.data for work in works]
    trial: Batch = {}
    plan: list[Draw] = []
    if first.steps:  # without a step no data is read, and there may be none
        trial = _trial([work for work in works if work.steps])
        plan = model.record({name: column.to(first.device) for name, column in trial.items()})
    batches = [work.steps * work.accumulate for work in works]
    check = workload.check_batch if isinstance(workload, SupportsBatchChecks) else None
    if check is None and all(type(one) is ArrayDataset and one.transform is None for one in sets):
        return GatheredBatches(sets, first.batch_size, batches, streams, plan, first.device)
    return MadeBatches(sets, first.batch_size, batches, streams, plan, first.device, check, trial)


def _trial(works: Sequence[LocalWork]) -> Batch:
    """Return a batch of the first client.

    Raises
    ------
    ClientError
        When its data cannot be read, with the errors of all clients before the first whose data can.
    """
    errors = dict[int, Exception]()
    for position, work in enumerate(works):
        try:
            with seeded("a trial of the loss"):
                trial = work.data.sample_batch(work.batch_size)
        except Exception as error:
            errors[position] = error
        else:
            if not errors:
                return trial
            break
    raise ClientError(errors)
