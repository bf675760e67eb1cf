"""Flower's aggregation on made-up replies, without messages: the reference for the rules of strategies/aggregation."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict


class FlowerReply:
    """The part of a message that Flower's strategies read."""

    def __init__(self, arrays, examples, metrics):
        self.content = RecordDict({"arrays": array_record(arrays)})
        self.content["metrics"] = MetricRecord({**metrics, "num-examples": examples})

    def has_error(self):
        return False


def array_record(arrays, dtype=None):
    """Copies of tensors as a record."""
    return ArrayRecord({name: Array(np.array(tensor.numpy(), dtype=dtype)) for name, tensor in arrays.items()})


def aggregate(strategy, updates, names, server_round=1, dtype=None):
    """What one of Flower's strategies makes of some arrays (and the metric start-loss) of clients, as tensors."""
    replies = [
        FlowerReply(
            {name: one.arrays[name].to(dtype or one.arrays[name].dtype) for name in names}, one.examples, one.metrics
        )
        for one in updates
    ]
    arrays, _ = strategy.aggregate_train(server_round, replies)
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in arrays.items()}
