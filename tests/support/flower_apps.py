"""Tiny Flower apps, written into a folder: one of the Message API, one of the older API, loops of their own."""

from __future__ import annotations

import textwrap

PROJECT = """
[project]
name = "tiny-app"
version = "1.0"
dependencies = ["flwr>=99", "no-such-package[extra]==1.2; python_version > '3'"]

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "tiny.server:app"
clientapp = "tiny.client:app"

[tool.flwr.app.config]
num-server-rounds = 2
learning-rate = 0.5
verbose = false
model.name = "line"

[tool.flwr.federations]
default = "here"

[tool.flwr.federations.here]
options.num-supernodes = 3
"""

SERVER = """
import random
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
import numpy as np
import torch

app = ServerApp()

@app.main()
def main(grid, context):
    print("the app prints", context.run_config["model.name"])
    start = ArrayRecord([np.array([random.random(), np.random.rand(), torch.rand(1).item()])])
    strategy = FedAvg(fraction_evaluate=0.7, min_evaluate_nodes=2)
    strategy.start(grid, start, num_rounds=context.run_config["num-server-rounds"], evaluate_fn=test,
                   train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}))

def test(server_round, arrays):
    return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean())})
"""

CLIENT = """
import random
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
import numpy as np
import torch

app = ClientApp()
calls = []  # of one run

@app.train()
def train(message, context):
    calls.append(1)
    partition = context.node_config["partition-id"]
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    weights = weights + [random.random(), np.random.rand(), torch.rand(1).item()]
    metrics = {"loss": 1.0 + partition, "calls": len(calls), "list": [1.0, 2.0], "num-examples": 1 + partition}
    return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": MetricRecord(metrics)}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"eval_acc": 0.25 * context.node_config["partition-id"], "num-examples": 4})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""

OLD_SERVER = """
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
import numpy as np

def test(server_round, parameters, config):
    return 0.5, {"accuracy": 0.1 * server_round}

def server_fn(context):
    strategy = FedAvg(initial_parameters=ndarrays_to_parameters([np.zeros(3)]), evaluate_fn=test, min_fit_clients=3)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

app = ServerApp(server_fn=server_fn)
"""

OLD_CLIENT = """
import threading
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
import numpy as np

class Client(NumPyClient):
    def __init__(self, partition):
        self.partition = partition

    def fit(self, parameters, config):
        assert threading.current_thread() is threading.main_thread()
        return [parameters[0] + np.random.rand(3)], 1 + self.partition, {"train_loss": 1.0, "note": "text"}

    def evaluate(self, parameters, config):
        return 0.5, 4, {"accuracy": 0.25 * self.partition}

app = ClientApp(client_fn=lambda context: Client(context.node_config["partition-id"]).to_client())
"""

OWN_LOOP = """
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp
import numpy as np

app = ServerApp()

@app.main()
def main(grid, context):
    content = RecordDict({"arrays": ArrayRecord([np.zeros(3)])})
    for _ in range(2):
        nodes = list(grid.get_node_ids())
        replies = grid.send_and_receive([Message(content, node, "train") for node in reversed(nodes)])
        assert [reply.metadata.src_node_id for reply in replies] == sorted(nodes)
    grid.send_and_receive([Message(content, nodes[0], "evaluate")])
"""


def write_app(folder, server=SERVER, client=CLIENT, project=PROJECT):
    """Write an app and return its folder."""
    (folder / "tiny").mkdir(parents=True)
    for name, text in {
        "pyproject.toml": project,
        "tiny/__init__.py": "",
        "tiny/server.py": server,
        "tiny/client.py": client,
    }.items():
        (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


ONE_WAY = """
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp
import numpy as np

app = ServerApp()

@app.main()
def main(grid, context):
    content = RecordDict({"arrays": ArrayRecord([np.zeros(3)])})
    for _ in range(2):
        nodes = list(grid.get_node_ids())
        assert len(grid.send_and_receive([Message(content, node, "train") for node in nodes])) == len(nodes)
        grid.push_messages([Message(content, node, "train.apply") for node in nodes])  # whose replies nobody reads
"""

ONE_WAY_CLIENT = """
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    applied = context.state["applied"]["times"] if "applied" in context.state else 0
    return Message(RecordDict({"metrics": MetricRecord({"applied": applied})}), reply_to=message)

@app.train("apply")
def apply(message, context):
    record = context.state.setdefault("applied", ConfigRecord({"times": 0}))
    record["times"] += 1
    return Message(RecordDict(), reply_to=message)
"""
