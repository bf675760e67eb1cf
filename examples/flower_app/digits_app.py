"""A plain Flower app with a workload of fedlab: model, data, loss and metrics; the strategy is Flower's FedAvg.

Run it as `flwr run examples/flower_app` or `fedlab flower examples/flower_app`.
"""

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedlab.registry import load_config
from fedlab.workload import Workload

server, client = ServerApp(), ClientApp()


@cache
def workload_of(preset: str) -> Workload:
    return load_config(preset).workload


@server.main()
def main(grid: Grid, context: Context) -> None:
    model = workload_of(context.run_config["preset"]).model()
    rounds = int(context.run_config["num-server-rounds"])
    FedAvg().start(grid, ArrayRecord(model.state_dict()), num_rounds=rounds)


@client.train()
@client.evaluate()
def answer(message: Message, context: Context) -> Message:
    workload = workload_of(context.run_config["preset"])
    training, model = message.metadata.message_type == "train", workload.model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    data = workload.data(int(context.node_config["partition-id"]), "train" if training else "test")
    if not training:
        found = MetricRecord({**workload.evaluate(model.eval(), data), "num-examples": len(data)})
        return Message(RecordDict({"metrics": found}), reply_to=message)
    optimizer = torch.optim.SGD(model.parameters(), lr=float(context.run_config["learning-rate"]))
    for _ in range(int(context.run_config["local-steps"])):
        optimizer.zero_grad()
        loss = workload.loss(model.train(), data.sample_batch(64))
        loss.backward()
        optimizer.step()
    found = MetricRecord({"train_loss": loss.item(), "num-examples": len(data)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": found}), reply_to=message)
