"""A client app for worker processes: does what the message's config says, and answers with what it got."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedlab.comm.tensors import tensor_record, tensors_of

app = ClientApp()


@app.train()
def train(message, context):
    """Double the arrays; before that wait, die, fail or change what was sent, where the config names this partition."""
    config, partition = message.content["config"], context.node_config["partition-id"]
    if partition == config.get("dies"):
        once = Path(str(config.get("once", "")))
        if not config.get("once") or not once.exists():
            once.touch() if config.get("once") else None
            os.kill(os.getpid(), signal.SIGKILL)
    if partition == config.get("fails"):
        raise ValueError("no such lesion")
    if "seconds" in config and config.get("slow", partition) == partition:
        time.sleep(config["seconds"])
    arrays = tensors_of(message.content["arrays"])
    if partition == config.get("changes"):
        arrays["w"].add_(1)
    calls = int(context.state["calls"]["calls"]) + 1 if "calls" in context.state else 1
    context.state["calls"] = MetricRecord({"calls": calls})
    doubled = {name: 2 * tensor + partition for name, tensor in arrays.items()}
    facts = {"pid": os.getpid(), "calls": calls, "threads": torch.get_num_threads()}
    metrics = MetricRecord({"num-examples": 1, **facts})
    own = {"own": message.content["own"]} if "own" in message.content else {}
    return Message(
        RecordDict({"arrays": tensor_record(doubled), "metrics": metrics, "config": ConfigRecord({}), **own}),
        reply_to=message,
    )
