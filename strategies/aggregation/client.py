"""What a rule may ask of a client: its loss before training, and an update that is clipped before it leaves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedlab.data.dataset import ArrayDataset
from fedlab.seeds import seeded
from fedlab.strategies.protocol import ARRAYS, CONFIG, METRICS, ClientContext, arrays_of, load, metrics_record, round_of
from fedlab.training import resolve_device
from fedlab.workload import Workload

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
    """A reply with a whole model, and with what the server's rule asked for in ``config``.

    Parameters
    ----------
    trained
        State of the client's model.
    metrics
        What the strategy itself reports.
    data
        What the client trained on.
    """
    config = message.content[CONFIG]
    assert isinstance(config, ConfigRecord)
    sent, measured, state = arrays_of(message.content), dict(metrics), dict(trained)
    if config.get(START_LOSS, False):
        measured[START_LOSS] = start_loss(workload, sent, message, context, data)
    if CLIPPING_NORM in config:
        learned = {name for name, _ in workload.model().named_parameters()}
        state, whole = clip(state, sent, learned, float(config[CLIPPING_NORM]))  # type: ignore[arg-type]
        measured[UNCLIPPED] = float(whole)
    return RecordDict({ARRAYS: ArrayRecord(state), METRICS: metrics_record(measured, len(data))})


@torch.no_grad()
def start_loss(
    workload: Workload, sent: Mapping[str, Tensor], message: Message, context: ClientContext, data: ArrayDataset
) -> float:
    """Mean loss of the model that was sent, from a random stream of its own: training goes as if nobody had asked."""
    core, partition = context.config.run, context.partition
    some, total = data.subsample(LOSS_EXAMPLES), 0.0
    with seeded(core.seed, START_LOSS, round_of(message), partition):
        device = resolve_device(core.device)
        model = load(workload.model(), sent, device).eval()
        for batch in some.batches(LOSS_BATCH):
            moved = {name: column.to(device) for name, column in batch.items()}
            total += float(workload.loss(model, moved)) * len(next(iter(batch.values())))
    return total / len(some)


def clip(
    trained: Mapping[str, Tensor], sent: Mapping[str, Tensor], learned: set[str] | frozenset[str], limit: float
) -> tuple[dict[str, Tensor], bool]:
    """A model whose change has a Euclidean norm of at most ``limit``, and whether it had that before.

    Only learned arrays change; the others are updates as they were sent. (Flower's function divides by a norm of 0.)
    """
    change = {name: trained[name].cpu().double() - sent[name].double() for name in sorted(learned)}
    norm = float(torch.stack([delta.square().sum() for delta in change.values()]).sum().sqrt())
    share = limit / norm if norm > limit else 1.0
    moved = {name: (sent[name].double() + share * delta).to(sent[name].dtype) for name, delta in change.items()}
    return {name: moved.get(name, tensor) for name, tensor in sent.items()}, norm <= limit
