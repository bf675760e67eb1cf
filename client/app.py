"""The ClientApp: answers query, train and evaluate; opens the seed scope; keeps what its owner predicts with.

On a machine of its own a client is started with settings of its own (``fedlab join``, Flower's ``--node-config``):
``domain``, ``device``, ``data-root``, ``data-folder`` and ``keep``. They go before the run's, which are the server's.
Its owner is told what the server is not: the traceback of an error. And what the server says of an update that it did
not use.
"""

from __future__ import annotations

import sys
import time
import traceback
from typing import Literal

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY, ErrorCode

from fedlab import strategies, workloads
from fedlab.comm import compression
from fedlab.comm.grid import REFUSED
from fedlab.comm.roster import REFUSAL
from fedlab.config.schema import Core, build
from fedlab.errors import ConfigError, FedlabError, suggest
from fedlab.runs.client_store import Keep
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.protocol import CONFIG, ROUND, round_of
from fedlab.workload import SupportsImages, Workload

app = ClientApp()

OWN = {"device": "device", "data-root": "data_root", "data-folder": "folder"}  # node config -> knob
SERVERS = ("data_root", "folder", "run_dir")  # knobs whose values mean something on the server only
OURS = ("fedlab",)  # packages in which a traceback is worth naming a line


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which partition this client holds, by number and by name; or hear why the server refuses it."""
    keep = Keep.of(context.node_config)
    try:
        if REFUSAL in message.content:
            reason = str(_field(message.content[REFUSAL], "reason"))
            print(f"fedlab: refused: {reason}", file=sys.stderr, flush=True)
            keep.tell("query", status="refused", reason=reason)
            return _error(message, f"refused: {reason}")
        settle(context)
        name = str(context.node_config.get("domain", ""))
        identity = ConfigRecord({"partition": int(context.node_config[PARTITION_ID_KEY]), "name": name})
        keep.tell("query", status="ok", name=str(context.run_config.get("name", "")))
        return Message(RecordDict({"identity": identity}), reply_to=message)
    except FedlabError as error:
        print(f"fedlab: refused: {error}", file=sys.stderr, flush=True)
        keep.tell("query", status="refused", reason=str(error))
        return _error(message, str(error))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of local training."""
    return _answer("train", message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Metrics on the client's own test data."""
    return _answer("evaluate", message, context)


def settle(context: Context) -> Workload:
    """Put the client's own settings before the run's, and find its partition; returns the workload.

    Raises
    ------
    ConfigError
        When the run has no client of this domain.
    """
    node, flat = context.node_config, context.run_config
    if "domain" in node:  # a machine of its own: the server's folders are not here
        flat.update({knob: "" for knob in SERVERS if knob in flat})
    flat.update({knob: node[key] for key, knob in OWN.items() if key in node})
    workload = workloads.make(flat)
    if "domain" in node:
        domain, clients = str(node["domain"]), list(workload.clients)
        if domain not in clients:
            raise ConfigError(f"this run has no client {domain!r}; {suggest(domain, clients)}")
        node[PARTITION_ID_KEY] = clients.index(domain)
    return workload


def _answer(purpose: Literal["train", "evaluate"], message: Message, context: Context) -> Message:
    """Run the strategy's client half in its own seed scope; any failure becomes a reply that says where and why."""
    keep, begun, server_round = Keep.of(context.node_config), time.monotonic(), -1
    try:
        server_round = round_of(message)
        if REFUSED in message.content:
            refused = message.content.pop(REFUSED)
            keep.tell("refused", round=_field(refused, "round"), reason=_field(refused, "reason"))
        workload = settle(context)
        core, partition = build(Core, "", context.run_config), int(context.node_config[PARTITION_ID_KEY])
        half = strategies.client_functions(core.strategy)
        message.content = compression.decode(message.content)
        with deterministic(core.threads):
            with seeded(core.seed, purpose, server_round, partition):
                content = (half.train if purpose == "train" else half.evaluate)(workload, message, context)
            content[CONFIG] = ConfigRecord({ROUND: server_round})
            fact = {"round": server_round, "rounds": core.rounds, "name": core.name}
            if keep and purpose == "evaluate":
                states = half.prediction_states(workload, message, context)
                kept = {**fact, "images": isinstance(workload, SupportsImages)}
                keep.save(states, context.run_config, workload.clients[partition], kept)
        keep.tell(purpose, status="ok", seconds=round(time.monotonic() - begun, 3), **fact)
        return Message(compression.encode(content, core.wire), reply_to=message)
    except FedlabError as error:
        reason = told = str(error)
    except Exception as error:
        reason = traceback.format_exc()
        told = _where(error) if "domain" in context.node_config else reason  # paths of its machine are its owner's
    keep.tell(purpose, status="failed", round=server_round, reason=reason)
    return _error(message, f"in {purpose}: {told}")


def _where(error: Exception) -> str:
    """Type and text of an error, and the innermost line of ours that it came from."""
    frames = [(frame.f_globals.get("__name__", ""), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    module, line = [(module, line) for module, line in frames if module.partition(".")[0] in OURS][-1]
    return f"{type(error).__name__}: {error} ({module}:{line})"


def _error(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _field(record: object, key: str) -> object:
    return record[key] if isinstance(record, ConfigRecord) and key in record else "not said"
