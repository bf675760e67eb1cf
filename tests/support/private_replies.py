"""Replies of a DualAdapt client with local privacy, and comparisons of them."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedlab import registry
from fedlab.data.dataset import ArrayDataset
from fedlab.engines import flower_internals
from fedlab.models import em
from fedlab.seeds import seeded
from fedlab.strategies.dualadapt.client import train
from fedlab.strategies.dualadapt.mixtures import upload
from fedlab.strategies.protocol import ClientContext
from toy import SMALL, Blobs, Net


def config(**changes):
    options = {"dualadapt.local_privacy": "moments", "dualadapt.noise_multiplier": 1.0, **changes}
    return registry.load_config({**SMALL, "workload": "digits", "strategy": "dualadapt"}, options)


class Swapped(Blobs):
    """The same clients, one of them without its last example."""

    def data(self, partition, split):
        whole = super().data(partition, split)
        return whole if partition is None else ArrayDataset({"x": whole.columns["x"][:-1]})


def asked():
    """What the server sends."""
    with seeded("model"):
        model, z = Net(), torch.randn(60, 8)
        mixture = upload(em.fit(z, 2, variance_floor=1e-2), z)
    arrays = ArrayRecord(model.state_dict())
    return RecordDict({"arrays": arrays, "mixture": mixture, "config": ConfigRecord({"server-round": 1})})


def reply(content, workload=None, seed=0, function=train, **changes):
    identity = flower_internals.TaskIdentity
    identity.run_id, identity.node_id, identity.task_id = 1, 1, 1
    with seeded("client", seed):
        message = Message(content, dst_node_id=1, message_type="train")
        return function(workload or Blobs(), message, ClientContext(0, config(**changes)))


def arrays(found):
    return {name: found[name].to_torch_state_dict() for name in ("head", "mixture")}


def equal(a, b):
    return all(torch.equal(a[record][name], b[record][name]) for record in a for name in a[record])
