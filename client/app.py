"""ClientApp: answers query, train and evaluate messages; opens the seed scope; saves the model for the client's owner.

A deployed client is started with node settings (``fedlab join``, Flower's ``--node-config``): ``domain``, ``device``,
``data-root``, ``data-folder`` and ``state-dir``. They take precedence over the run's, which are the server's. Its log
in the state directory holds what the server does not get, the traceback of an error, and the reason of an update that
the server rejected.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Literal

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY, ErrorCode

from fedlab import __version__
from fedlab.comm import compression
from fedlab.comm.foreign_text import MAX_REASON, REFUSED
from fedlab.comm.grid import REJECTED_UPDATE
from fedlab.comm.roster import REJECTED_NODE, SERVER
from fedlab.comm.stacked_replies import StackedContent, StackedReply
from fedlab.comm.tensors import content_bytes
from fedlab.config.schema import Config
from fedlab.config.sections import Value
from fedlab.device_errors import device_error_sentence
from fedlab.errors import ConfigError, FedlabError, RunError, no_room_sentence, os_error_sentence, suggest
from fedlab.exits import exits_as_errors
from fedlab.precision import computing_in
from fedlab.registry import app_config, config_from_text
from fedlab.run_data import client_sources
from fedlab.runs.client_progress import progress_of
from fedlab.runs.client_state import NO_STATE, ClientState
from fedlab.runs.client_store import ClientStore
from fedlab.runs.consent import Request, check_consent, config_digest
from fedlab.runs.privacy_ledger import PrivacyLedger
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.protocol import (
    CHECKPOINTS,
    CONFIG,
    NOTE,
    ROUND,
    RUN,
    ClientContext,
    ClientFunctions,
    ManyClientsFn,
    is_final,
    round_of,
)
from fedlab.strategies.vectorized import take_notes
from fedlab.training import resolve_device
from fedlab.vectorized.draws import NotVectorizable
from fedlab.vectorized.memory import check_batch, suggested_batch
from fedlab.workload import SupportsImages


class ManyClientsApp(ClientApp):
    """Flower's ClientApp, which also trains several clients of one process at once."""

    def train_many(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """Return the replies to training messages, in their order: to rounding those of one client after another."""
        return _answer_many(messages, contexts)


app = ManyClientsApp()

NODE_KEYS = {"device": "device", "data-root": "data.root", "data-folder": "data.client_folder"}  # node config -> option
SERVER_ONLY = ("data.root", "checkpoint.pretrain_cache")  # options whose values are paths on the server
MANY = 1024  # clients at once where memory sets no limit
PACKAGES = ("fedlab",)  # packages whose lines are named in an error


@app.query()
def query(message: Message, context: Context) -> Message:
    """Return number and name of this client's partition; or log why the server rejects this client."""
    store = ClientStore.from_node_config(context.node_config)
    try:
        if REJECTED_NODE in message.content:
            reason = str(_field(message.content[REJECTED_NODE], "reason"))
            print(f"{REFUSED}{reason}", file=sys.stderr, flush=True)
            store.log_event("query", status="refused", reason=reason)
            return _error(message, f"refused: {reason}")
        _check_server(message, context)
        config = apply_node_settings(context)
        _check_consent(store, config, context)
        name = str(context.node_config.get("domain", ""))
        identity = ConfigRecord({"partition": int(context.node_config[PARTITION_ID_KEY]), "name": name})
        store.log_event("query", status="ok", name=config.run.name)
        store.audit("asked who it is", **_asked_by(config, context))
        return Message(RecordDict({"identity": identity}), reply_to=message)
    except (FedlabError, OSError) as error:
        reason = os_error_sentence(error) if isinstance(error, OSError) else str(error)
        print(f"{REFUSED}{reason}", file=sys.stderr, flush=True)
        store.log_event("query", status="refused", reason=reason)
        with suppress(RunError):  # which sends nothing
            store.audit("refused", reason=reason, server=str(context.node_config.get("server", "")))
        return _error(message, reason)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Run one round of local training."""
    with ClientStore.from_node_config(context.node_config).log_warnings():
        return _answer("train", message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Return metrics on the client's test data."""
    with ClientStore.from_node_config(context.node_config).log_warnings():
        return _answer("evaluate", message, context)


def apply_node_settings(context: Context) -> Config:
    """Override the run's settings by the node's, find the node's partition, and return the configuration.

    Raises
    ------
    ConfigError
        When the run has no client of this domain.
    """
    node = context.node_config
    own: dict[str, Value] = dict.fromkeys(SERVER_ONLY, "") if "domain" in node else {}  # its folders are not here
    own |= {option: node[key] for key, option in NODE_KEYS.items() if key in node}
    config = config_from_text(*app_config(context.run_config), tuple(own.items()))
    if "domain" in node:
        domain, clients = str(node["domain"]), list(config.workload.clients)
        if domain not in clients:
            raise ConfigError(f"this run has no client {domain!r}; {suggest(domain, clients)}")
        node[PARTITION_ID_KEY] = clients.index(domain)
    return config


def _check_server(message: Message, context: Context) -> None:
    """Refuse a server of another version, or one that understands the run's options in another way.

    Raises
    ------
    ConfigError
        With both versions.
    """
    said = message.content.get(SERVER)
    if not isinstance(said, ConfigRecord):
        return
    version, own = str(said.get("version", "unknown")), str(__version__)
    if version != own:
        raise ConfigError(
            f"this client has fedlab {own}, and the server has fedlab {version}; install the same version on both"
        )
    if said.get("config") != config_digest(config_from_text(*app_config(context.run_config))):
        raise ConfigError(
            "this client understands the options of the run in another way than the server does, although both have "
            f"fedlab {own}; install the same packages of workload and strategy on both"
        )


def _check_consent(store: ClientStore, config: Config, context: Context, *, trains: bool = True) -> None:
    """Refuse a run that the client's owner has not allowed, or whose next release costs too much privacy.

    The budget is looked at before the first run's demands are kept as what is allowed. A server may ask for a test of a
    run that the client was never asked to join: then, too, nothing is sent without the noise that the owner wants.
    """
    if store.path is not None:
        ledger = PrivacyLedger.of_client(store.path, context.node_config)
        ledger.check(config.plugins["strategy"].spec.release(config), config, next_release=trains)
    check_consent(store.path, context.node_config, Request.of(config))


def _spend(store: ClientStore, config: Config, context: Context) -> dict[str, float]:
    """Write down what a training releases, before it does; return what the client's log says of it."""
    release = config.plugins["strategy"].spec.release(config)
    if store.path is None or release is None:
        return {}
    ledger = PrivacyLedger.of_client(store.path, context.node_config)
    return {"epsilon": ledger.spend(release), "max_epsilon": ledger.limit}


def _asked_by(config: Config, context: Context) -> dict[str, object]:
    """Return who asked, and for what, for the audit log."""
    run, server = config.run, str(context.node_config.get("server", ""))
    facts = {"server": server, "flower_run": str(context.run_id), "run": run.name, "rounds": run.rounds}
    return {**facts, "strategy": run.strategy, "workload": run.workload}


def _sent(content: RecordDict) -> dict[str, object]:
    """Return the bytes of a reply, and the names of all that is in it, for the audit log."""
    return {"bytes": content_bytes(content), "sent": {name: sorted(record) for name, record in content.items()}}


def _answer(purpose: Literal["train", "evaluate"], message: Message, context: Context) -> Message:
    """Run the strategy's client functions in its seed scope; a failure becomes an error reply that says why."""
    store, started, server_round = ClientStore.from_node_config(context.node_config), time.monotonic(), -1
    try:
        server_round = round_of(message)
        if REJECTED_UPDATE in message.content:
            rejection = message.content.pop(REJECTED_UPDATE)
            store.log_event("refused", round=_field(rejection, "round"), reason=_field(rejection, "reason"))
        config = apply_node_settings(context)
        _check_consent(store, config, context, trains=purpose == "train")
        run, workload, partition = config.run, config.workload, int(context.node_config[PARTITION_ID_KEY])
        functions: ClientFunctions = config.plugins["strategy"].spec.client
        state, progress = _state(message, context, config), progress_of(partition)
        who = ClientContext(partition, config.for_client(server_round), state, progress)
        message.content = compression.decode(message.content)
        if store and purpose == "train" and (sources := client_sources(workload, partition)):  # it reads the same data
            store.log_event("data", name=run.name, sources=[asdict(source) for source in sources])
        spent = _spend(store, config, context) if purpose == "train" else {}
        with deterministic(run.threads), computing_in(run.precision, resolve_device(run.device)):
            with seeded(run.seed, purpose, server_round, partition), exits_as_errors():
                content = (functions.train if purpose == "train" else functions.evaluate)(workload, message, who)
            content[CONFIG] = _round_record(server_round).copy()
            asked = message.content[CONFIG]
            assert isinstance(asked, ConfigRecord)
            last = is_final(server_round, run.rounds, asked)
            facts = {"round": server_round, "rounds": run.rounds, "name": run.name, "last": last}
            if store and purpose == "evaluate":
                states = functions.prediction_states(workload, message, who)
                saved = {**facts, "images": isinstance(workload, SupportsImages)}
                store.save(states, config, workload.clients[partition], saved)
        encoded = compression.encode(content, config.comm.compression)
        if store:
            store.audit(purpose, **_asked_by(config, context), round=server_round, **_sent(encoded), **spent)
        store.log_event(purpose, status="ok", seconds=round(time.monotonic() - started, 3), **facts, **spent)
        return Message(encoded, reply_to=message)
    except FedlabError as error:
        reason = reported = str(error)
    except Exception as error:
        sentence = device_error_sentence(error) or no_room_sentence(error)
        reason = sentence or traceback.format_exc()
        deployed = "domain" in context.node_config  # then a traceback would show the server paths of that machine
        reported = _error_location(error) if deployed and not sentence else reason
    store.log_event(purpose, status="failed", round=server_round, reason=reason)
    with suppress(RunError):  # of which an error's text is sent alone
        store.audit("failed", purpose=purpose, round=server_round, reason=reported[:MAX_REASON])
    return _error(message, f"in {purpose}: {reported}")


def _answer_many(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    """Train clients at once, and one after another where the strategy or the model cannot do otherwise."""
    try:
        config = apply_node_settings(contexts[0])
        train_many = config.plugins["strategy"].spec.client.train_many
        if train_many is None:
            for message in messages:
                message.content = _own_records(message.content)
            replies = [_answer("train", *both) for both in zip(messages, contexts, strict=True)]
            return _with_notes(replies, f"clients of strategy {config.run.strategy!r} train one after another")
        _decode_each(messages)
        rounds = list(map(round_of, messages))
        trainings = {number: config.for_client(number) for number in set(rounds)}
        who = [
            ClientContext(
                int(context.node_config[PARTITION_ID_KEY]),
                trainings[server_round],
                _state(message, context, config),
            )
            for message, context, server_round in zip(messages, contexts, rounds, strict=True)
        ]
        outcomes: list[RecordDict | StackedContent | Exception] = []
        run = config.run
        with deterministic(run.threads), computing_in(run.precision, resolve_device(run.device)):
            size = _clients_at_once(train_many, messages[0], who[0], config)
            for some in (slice(start, start + size) for start in range(0, len(who), size)):
                outcomes += train_many(config.workload, messages[some], who[some])
    except FedlabError as error:
        return [_error(message, f"in train: {error}") for message in messages]
    replies = [_reply_of(*each, config) for each in zip(outcomes, messages, rounds, strict=True)]
    return _with_notes(replies)


def _decode_each(messages: Sequence[Message]) -> None:
    """Decode the content of each message, of those that share one once.

    What was decoded is in records of the client's own: an engine looks for changes in those alone that it handed over.
    """
    decoded: dict[int, tuple[RecordDict, RecordDict]] = {}  # the first of each is kept, so that its id stays its own
    for message in messages:
        content = message.content
        if id(content) not in decoded:
            if REJECTED_UPDATE in content:  # then it is this client's alone
                del content[REJECTED_UPDATE]
            decoded[id(content)] = content, compression.decode(content)
        found = decoded[id(content)][1]
        message.content = found if found is content else _own_records(found)


def _own_records(content: RecordDict) -> RecordDict:
    """Return a content of copies of the same records, which a client may change; arrays are shared."""
    return RecordDict({name: record.copy() for name, record in content.items()})


def _clients_at_once(train_many: ManyClientsFn, message: Message, who: ClientContext, config: Config) -> int:
    """Return how many clients train at once: as many as asked for, or as suit the device.

    The memory is that of the client of partition 0, whoever asks: so all processes of a run find the same number, and
    a run's bits do not depend on which of them gets which clients.

    Parameters
    ----------
    config
        The run's, which is the same in every round.

    Raises
    ------
    ConfigError
        When so many do not fit into memory, with how many would.
    """
    wanted, key = config.run.vectorize, (config.to_toml(), who.device.type)
    if key not in _at_once:
        _at_once.clear()
        try:
            memory = train_many.memory(who.config.workload, message, replace(who, partition=0))
        except NotVectorizable:  # which the training says again, and trains one after another
            _at_once[key] = MANY
        except Exception:  # of that client alone, which its training names; the others train nevertheless
            return int(wanted) if wanted.isdecimal() else MANY
        else:
            if wanted.isdecimal():
                check_batch(int(wanted), memory, who.device)
            _at_once[key] = int(wanted) if wanted.isdecimal() else suggested_batch(memory, who.device)
    return _at_once[key]


_at_once: dict[tuple[str, str], int] = {}
_said: set[str] = set()


def _reply_of(
    outcome: RecordDict | StackedContent | Exception, message: Message, server_round: int, config: Config
) -> Message:
    if isinstance(outcome, Exception):
        known = isinstance(outcome, FedlabError)
        reason = str(outcome) if known else "".join(traceback.format_exception(outcome))
        return _error(message, f"in train: {reason}")
    asked = _round_record(server_round)
    if isinstance(outcome, StackedContent):
        of, row = outcome
        if config.comm.compression == compression.FLOAT32 and of.configs.setdefault(CONFIG, asked) is asked:
            return StackedReply(of, row, message)
        outcome = of[row]
    outcome[CONFIG] = asked.copy()
    return Message(compression.encode(outcome, config.comm.compression), reply_to=message)


@lru_cache(maxsize=2)
def _round_record(server_round: int) -> ConfigRecord:
    """Return the record that says what round a reply is for, which all clients of a round copy."""
    return ConfigRecord({ROUND: server_round})


def _with_notes(replies: list[Message], *more: str) -> list[Message]:
    """Return replies, the first good one with what the server's log should say, each sentence once a process."""
    first = next((reply for reply in replies if not reply.has_error()), None)
    notes = [note for note in (*more, *take_notes()) if note not in _said]
    if first is not None and notes:
        _said.update(notes)
        entries = first.content[CONFIG]
        assert isinstance(entries, ConfigRecord)
        entries[NOTE] = "; ".join(notes)
    return replies


def _state(message: Message, context: Context, config: Config) -> ClientState:
    """Return the client's own state, where the strategy declares one."""
    if not config.plugins["strategy"].spec.client_state:
        return NO_STATE
    node, entries = context.node_config, message.content[CONFIG]
    assert isinstance(entries, ConfigRecord)
    checkpoints = entries.get(CHECKPOINTS)
    known = [int(number) for number in checkpoints] if isinstance(checkpoints, list) else None
    return ClientState.of_client(node, str(entries.get(RUN, "")), int(node[PARTITION_ID_KEY]), known)


def _error_location(error: Exception) -> str:
    """Return type and text of an error, and the innermost line of ``PACKAGES`` that it came from."""
    frames = [(frame.f_globals.get("__name__", ""), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    module, line = [(module, line) for module, line in frames if module.partition(".")[0] in PACKAGES][-1]
    return f"{type(error).__name__}: {error} ({module}:{line})"


def _error(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _field(record: object, key: str) -> object:
    return record[key] if isinstance(record, ConfigRecord) and key in record else "not said"
