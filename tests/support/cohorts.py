"""Messages to all clients of a configuration, without a server, and the two ways to train those clients."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedlab.comm.stacked_replies import StackedContent
from fedlab.engines.flower_internals import task_identity
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.protocol import ClientContext

ROUND = 3


class Cohort:
    """The clients of a configuration, which all get the same fresh model; ``extra`` gives records by partition."""

    def __init__(self, config, extra=lambda partition, model: {}):
        self.config, self.workload = config, config.workload
        with seeded("a first model"):
            self.model = self.workload.model()
        self.functions = config.plugins["strategy"].spec.client
        self.contexts = [ClientContext(partition, config.for_client(ROUND)) for partition in range(len(config.clients))]
        with task_identity(1, 1):
            self.messages = [
                Message(
                    RecordDict(
                        {
                            "arrays": ArrayRecord(self.model.state_dict()),
                            "config": ConfigRecord({"server-round": ROUND}),
                            **extra(context.partition, self.model),
                        }
                    ),
                    dst_node_id=1 + context.partition,
                    message_type=MessageType.TRAIN,
                )
                for context in self.contexts
            ]

    def one_by_one(self):
        """Replies of the loop."""
        return [self.one_by_one_of(partition) for partition in range(len(self.contexts))]

    def one_by_one_of(self, partition):
        """One client's reply of the loop, as the client app calls it."""
        with deterministic(1), seeded(self.config.run.seed, "train", ROUND, partition):
            return self.functions.train(self.workload, self.messages[partition], self.contexts[partition])

    def at_once(self, *partitions):
        """Replies of these clients, or of all, trained together."""
        chosen = partitions or range(len(self.contexts))
        with deterministic(1):
            replies = self.functions.train_many(
                self.workload, [self.messages[one] for one in chosen], [self.contexts[one] for one in chosen]
            )
        return [one.of[one.row] if isinstance(one, StackedContent) else one for one in replies]


def state_of(reply, name="arrays"):
    return dict(reply[name].to_torch_state_dict())


def distance(reply, other, name="arrays"):
    """Largest distance of two replies: of a record's tensors together relative to their norm, and of metrics."""
    ours, theirs = state_of(reply, name), state_of(other, name)
    assert list(ours) == list(theirs)
    assert all((ours[key].dtype, ours[key].shape) == (theirs[key].dtype, theirs[key].shape) for key in ours)
    flat = [torch.cat([tensor.double().flatten() for tensor in state.values()]) for state in (ours, theirs)]
    metrics, others = dict(reply["metrics"]), dict(other["metrics"])
    assert metrics.keys() == others.keys()
    apart = [abs(metrics[key] - others[key]) / max(abs(others[key]), 1.0) for key in metrics]
    return max(float((flat[0] - flat[1]).norm() / flat[1].norm()), *apart)
