"""The ClientApp: answers query, train and evaluate; opens the seed scope; nothing else."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY, ErrorCode

import strategies
from fedlab import workloads
from fedlab.config import Core, build
from fedlab.errors import FedlabError
from fedlab.seeds import deterministic, seeded
from strategies.protocol import ClientHalf, round_of

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which partition this client holds."""
    identity = ConfigRecord({"partition": int(context.node_config[PARTITION_ID_KEY])})
    return Message(RecordDict({"identity": identity}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of local training."""
    return _answer("train", message, context, lambda half: half.train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Metrics on the client's own test data."""
    return _answer("evaluate", message, context, lambda half: half.evaluate)


Choice = Callable[[ClientHalf], strategies.Local]


def _answer(purpose: str, message: Message, context: Context, choose: Choice) -> Message:
    """Run the strategy's client half in its own seed scope; any failure becomes a reply that says where and why."""
    partition = int(context.node_config[PARTITION_ID_KEY])
    try:
        core = build(Core, "", context.run_config)
        local = choose(strategies.client_half(core.strategy))
        with deterministic(core.threads), seeded(core.seed, purpose, round_of(message), partition):
            return Message(local(workloads.make(context.run_config), message, context), reply_to=message)
    except FedlabError as error:
        reason = str(error)
    except Exception:
        reason = traceback.format_exc()
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"in {purpose}: {reason}"), reply_to=message)
