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

from fedlab.comm import compression
from fedlab.comm.grid import REFUSED
from fedlab.comm.roster import REFUSAL
from fedlab.config.schema import Config
from fedlab.config.sections import Value
from fedlab.errors import ConfigError, FedlabError, suggest
from fedlab.registry import app_config, config_from_text
from fedlab.runs.client_store import Keep
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.protocol import CONFIG, ROUND, ClientContext, ClientFunctions, round_of
from fedlab.workload import SeesImages

app = ClientApp()

OWN = {"device": "device", "data-root": "data.root", "data-folder": "data.client_folder"}  # node config -> option
SERVERS = ("data.root", "checkpoint.pretrain_cache")  # options whose values mean something on the server only
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
        config = settle(context)
        name = str(context.node_config.get("domain", ""))
        identity = ConfigRecord({"partition": int(context.node_config[PARTITION_ID_KEY]), "name": name})
        keep.tell("query", status="ok", name=config.run.name)
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


def settle(context: Context) -> Config:
    """Put the client's own settings before the run's, and find its partition; returns the configuration.

    Raises
    ------
    ConfigError
        When the run has no client of this domain.
    """
    node = context.node_config
    own: dict[str, Value] = dict.fromkeys(SERVERS, "") if "domain" in node else {}  # its folders are not here
    own |= {option: node[key] for key, option in OWN.items() if key in node}
    config = config_from_text(*app_config(context.run_config), tuple(own.items()))
    if "domain" in node:
        domain, clients = str(node["domain"]), list(config.workload.clients)
        if domain not in clients:
            raise ConfigError(f"this run has no client {domain!r}; {suggest(domain, clients)}")
        node[PARTITION_ID_KEY] = clients.index(domain)
    return config


def _answer(purpose: Literal["train", "evaluate"], message: Message, context: Context) -> Message:
    """Run the strategy's client half in its own seed scope; any failure becomes a reply that says where and why."""
    keep, begun, server_round = Keep.of(context.node_config), time.monotonic(), -1
    try:
        server_round = round_of(message)
        if REFUSED in message.content:
            refused = message.content.pop(REFUSED)
            keep.tell("refused", round=_field(refused, "round"), reason=_field(refused, "reason"))
        config = settle(context)
        run, workload, partition = config.run, config.workload, int(context.node_config[PARTITION_ID_KEY])
        half: ClientFunctions = config.plugins["strategy"].spec.client
        who = ClientContext(partition, config)
        message.content = compression.decode(message.content)
        with deterministic(run.threads):
            with seeded(run.seed, purpose, server_round, partition):
                content = (half.train if purpose == "train" else half.evaluate)(workload, message, who)
            content[CONFIG] = ConfigRecord({ROUND: server_round})
            fact = {"round": server_round, "rounds": run.rounds, "name": run.name}
            if keep and purpose == "evaluate":
                states = half.states(workload, message, who)
                kept = {**fact, "images": isinstance(workload, SeesImages)}
                keep.save(states, config, workload.clients[partition], kept)
        keep.tell(purpose, status="ok", seconds=round(time.monotonic() - begun, 3), **fact)
        return Message(compression.encode(content, config.comm.compression), reply_to=message)
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
