"""A client's reply, with what the server's rule requests: the loss before training, an update that is clipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from fedlab.comm.stacked_replies import StackedContents
from fedlab.data.dataset import ArrayDataset, to_device
from fedlab.seeds import seeded
from fedlab.strategies.protocol import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    METRICS,
    ClientContext,
    arrays_of,
    loaded_model,
    metrics_record,
    round_of,
    tensor_record,
)
from fedlab.training import resolve_device
from fedlab.vectorized.stacked_states import StackedState
from fedlab.workload import Workload, model_template

START_LOSS, CLIPPING_NORM, UNCLIPPED = "start-loss", "clipping-norm", "unclipped"
LOSS_EXAMPLES, LOSS_BATCH = 1000, 250  # a client's loss before training is taken on so many, so many at a time


def make_reply(
    workload: Workload,
    message: Message,
    context: ClientContext,
    trained: Mapping[str, Tensor],
    metrics: Mapping[str, float],
    data: ArrayDataset,
) -> RecordDict:
    """Return a reply with a model, and with what the server's rule requests in ``config``.

    Parameters
    ----------
    trained
        State of the client's model, or the part of it that it sends.
    metrics
        Metrics of the strategy itself.
    data
        The data that the client trained on.
    """
    config = message.content[CONFIG]
    assert isinstance(config, ConfigRecord)
    measured, state = dict(metrics), trained
    if config.get(START_LOSS, False):
        measured[START_LOSS] = start_loss(workload, arrays_of(message.content), message, context, data)
    if CLIPPING_NORM in config:
        sent = arrays_of(message.content)
        trainable = {name for name, _ in model_template(workload).named_parameters()} & state.keys()
        start = {name: tensor for name, tensor in sent.items() if name in state}
        state, whole = clip(state, start, trainable, float(config[CLIPPING_NORM]))  # type: ignore[arg-type]
        measured[UNCLIPPED] = float(whole)
    return RecordDict({ARRAYS: tensor_record(state), METRICS: metrics_record(measured, len(data))})


def make_replies(
    messages: Sequence[Message],
    trained: Sequence[Mapping[str, Tensor]],
    metrics: Mapping[str, Sequence[float]],
    examples: Sequence[int],
) -> StackedContents | None:
    """Return what :func:`make_reply` returns for each of several clients, stacked.

    None where the server's rule requests more of a client than its model, or the models are not the rows of one stack.

    Parameters
    ----------
    metrics
        Of the strategy itself: a number of each client by name.
    examples
        Number of examples that each client trained on.
    """
    for content in {id(message.content): message.content for message in messages}.values():
        config = content[CONFIG]
        assert isinstance(config, ConfigRecord)
        if config.get(START_LOSS, False) or CLIPPING_NORM in config:
            return None
    first, rows = trained[0], enumerate(trained)
    if not isinstance(first, StackedState) or len(first.of) != len(trained):
        return None
    if not all(isinstance(one, StackedState) and one.of is first.of and one.row == row for row, one in rows):
        return None
    return StackedContents({ARRAYS: first.of}, {METRICS: {**metrics, EXAMPLES: examples}})


@torch.no_grad()
def start_loss(
    workload: Workload, sent: Mapping[str, Tensor], message: Message, context: ClientContext, data: ArrayDataset
) -> float:
    """Return the mean loss of the model that was sent, on a random stream of its own, so that training is unchanged."""
    core, partition = context.config.run, context.partition
    some, total = data.subsample(LOSS_EXAMPLES), 0.0
    with seeded(core.seed, START_LOSS, round_of(message), partition):
        device = resolve_device(core.device)
        model = loaded_model(workload, sent, device).eval()
        for batch in some.batches(LOSS_BATCH):
            total += float(workload.loss(model, to_device(batch, device))) * len(next(iter(batch.values())))
    return total / len(some)


def clip(
    trained: Mapping[str, Tensor], sent: Mapping[str, Tensor], trainable: set[str] | frozenset[str], limit: float
) -> tuple[dict[str, Tensor], bool]:
    """Return the model with its change scaled to a Euclidean norm of at most ``limit``, and True if it had that before.

    Arrays that are not trainable are returned as they were sent.
    """
    change, whole = clipped_change(trained, sent, trainable, limit)
    moved = {name: (sent[name].double() + delta).to(sent[name].dtype) for name, delta in change.items()}
    return {name: moved.get(name, tensor) for name, tensor in sent.items()}, whole


def clipped_change(
    trained: Mapping[str, Tensor], sent: Mapping[str, Tensor], trainable: set[str] | frozenset[str], limit: float
) -> tuple[dict[str, Tensor], bool]:
    """Return the change of the trainable arrays, float64, scaled to a Euclidean norm of at most ``limit``.

    True comes with it if it had that norm before. The norm is that of all trainable arrays together. A norm of 0 is
    left as it is, where Flower's function divides by it.
    """
    change = {name: trained[name].cpu().double() - sent[name].double() for name in sorted(trainable)}
    norm = float(torch.stack([delta.square().sum() for delta in change.values()]).sum().sqrt())
    share = limit / norm if norm > limit else 1.0
    return {name: delta.mul_(share) for name, delta in change.items()}, norm <= limit  # in place: 8 bytes a weight
