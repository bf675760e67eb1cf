"""What every strategy of the table owes: it ends, resumes to the same bits, and uses no bad update."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MessageType
from flwr.common.constant import ErrorCode

from fedlab import launch, registry
from fedlab.config import schema
from fedlab.config.sections import section_fields
from fedlab.config.training_options import ClientConfig, ServerConfig
from fedlab.engines import inprocess
from fedlab.errors import ConfigError
from fedlab.runs.directory import RunDirectory
from fedlab.server import app
from fedlab.server.attempts import Attempts
from tables import lead, put
from toy import SMALL, SPEC, Blobs, write_preset

OPTIONS = {
    "dualadapt.em_steps": 3,
    "fedtrimmedavg.trim_fraction": 0.4,
    "self_training.threshold": 0.4,
    "semi_fl.threshold": 0.4,
    "startup.evaluate_every": 1,
    "source_free.steps": 3,
    "source_free.min_examples_per_class": 0,
    "shot.epochs": 1.0,
    "adacontrast.steps": 3,
    "fed_shot.epochs": 1.0,
    "fed_adacontrast.steps": 3,
    "client.learning_rate": 0.05,
}
STRATEGIES = list(registry.STRATEGIES)
LOCAL = [name for name in STRATEGIES if registry.find("strategy", name).spec.adaptation]  # clients send no arrays
TRAINING = [name for name in STRATEGIES if name not in ("source_only", "adabn", *LOCAL)]  # clients send what they train


class Shuffled(inprocess.InProcessGrid):
    """Other node ids, listed from the last partition, replies in the opposite order, and the first training is lost."""

    def __init__(self, host):
        host.partitions = {7 * partition + 3: partition for partition in reversed(host.partitions.values())}
        super().__init__(host)
        self.nodes, self.partitions = host.partitions, None  # each node is asked for its partition
        self.lost = False

    def get_node_ids(self):
        return list(self.nodes)

    def pull_messages(self, message_ids):
        return super().pull_messages(sorted(message_ids, key=lambda name: -int(name.partition("-")[2]))[:1])

    def _deliver(self, messages):
        """The client that is the last to be aggregated trains, and its reply gets lost, once."""
        replies = super()._deliver(messages)
        asked = [(message.metadata.message_type, self.nodes[message.metadata.dst_node_id]) for message in messages]
        if self.lost or asked != [(MessageType.TRAIN, 4)]:
            return replies
        self.lost = True
        return [Message(Error(ErrorCode.NODE_UNAVAILABLE, "it is gone"), reply_to=messages[0])]


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Checked configuration of a strategy on the toy workload."""
    put(monkeypatch, "workload", "blobs", SPEC)

    def table(name, **changes):
        entry = registry.find("strategy", name).spec
        usable = {key: value for key, value in SMALL.items() if not key.startswith("dualadapt")}
        mine = {key: value for key, value in OPTIONS.items() if key.partition(".")[0] in (name, "client")}
        data = {"blobs.domains": "a,b,c,d,e", "blobs.client_labels": entry.needs_client_labels, "blobs.linear": True}
        preset = write_preset(tmp_path, **{**usable, "strategy": name, "checkpoint.keep": 9})
        return launch.prepare(preset, {**mine, **data, **changes})

    return table


@pytest.fixture
def federate(tmp_path):
    """A run directory led to its end by the two apps."""

    def run(directory):
        if not isinstance(directory, RunDirectory):
            directory = RunDirectory.create(tmp_path, directory)
        lead(directory)
        return directory

    return run


TRAINING_OPTIONS = {
    f"{section}.{field.name}"
    for section, options in (("server", ServerConfig), ("client", ClientConfig))
    for field in dataclasses.fields(options)
    if not field.name.startswith("lr_step_")  # read with lr_schedule=step
} - {"server.evaluate", "client.evaluate", "server.agreement", "server.max_replies_mb"}  # of the loop of rounds
AMOUNTS = {"server.steps", "server.learning_rate", "client.steps", "client.epochs", "client.batch_size"}
AMOUNTS |= {"client.learning_rate"}  # set for several strategies at once


@pytest.fixture
def read_options(monkeypatch):
    """Options of the sections server and client that code other than that of the configuration reads."""
    found, configuration = set(), str(Path(schema.__file__).parent)

    def watch(section, options):
        def read(self, name):
            frame = sys._getframe(1)
            own = frame.f_code.co_name in ("local_steps", "trains", "lr_factor")
            if own or not frame.f_code.co_filename.startswith((configuration, "<string>")):
                found.add(f"{section}.{name}")
            return object.__getattribute__(self, name)

        monkeypatch.setattr(options, "__getattribute__", read, raising=False)

    watch("server", ServerConfig)
    watch("client", ClientConfig)
    return found


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_ends_and_resumes_to_the_same_bits_with_other_nodes_in_another_order_and_an_attempt_that_was_lost(
    prepare, federate, monkeypatch, read_options, name
):
    config = prepare(name, rounds=2)
    read_options.clear()
    directory = federate(config)
    unread = TRAINING_OPTIONS - read_options - AMOUNTS
    assert unread <= config.plugins["strategy"].spec.ignores  # or a user who sets one is not told
    whole, rounds = directory.manifest()["weights_sha256"], directory.rounds()
    assert [line["round"] for line in rounds] == [0, 1, 2]
    assert not any(line["failures"] for line in rounds)
    assert all(set(line["clients"]) == set("abcde") for line in rounds)
    assert all(np.isfinite(list(line["server"].values())).all() for line in rounds)
    (directory.path / "checkpoints" / "round-2.pt").unlink()  # killed in round 2
    directory.update_manifest(status="interrupted", weights_sha256=None)
    monkeypatch.setattr(inprocess, "InProcessGrid", Shuffled)
    monkeypatch.setattr(app, "Attempts", lambda most, *more: Attempts(2, *more))
    federate(directory)
    asks = any(record["train_down"] for record in rounds[2]["bytes"].values())
    assert ("the phase is repeated" in str(directory.rounds()[2]["notes"])) == asks
    assert directory.manifest()["weights_sha256"] == whole
    told = ("clients", "mean", "server")
    assert [{key: line[key] for key in told} for line in directory.rounds()] == [
        {key: line[key] for key in told} for line in rounds
    ]
    for before, now in zip(rounds, directory.rounds(), strict=True):
        lost = now["round"] == 2 and asks  # the attempt that was lost moved bytes, too
        for client, sizes in before["bytes"].items():
            assert all(now["bytes"][client][kind] >= size for kind, size in sizes.items())
            assert (now["bytes"][client] != sizes) == lost


@pytest.mark.parametrize("name", TRAINING)
def test_bad_updates_are_refused_and_the_others_used(prepare, federate, monkeypatch, name):
    entry = registry.find("strategy", name).spec

    def train(workload, message, context):
        content, partition = entry.client.train(workload, message, context), context.partition
        record = next(iter(content.array_records.values()))
        key = next(key for key, array in record.items() if array.dtype == "float32")
        if partition == 1:
            record[key] = Array(np.full_like(record[key].numpy(), np.nan))
        if partition == 3:
            record[key] = Array(record[key].numpy()[..., None])
        return content

    put(monkeypatch, "strategy", name, replace(entry, client=replace(entry.client, train=train)))
    line = federate(prepare(name, rounds=1, min_clients=3)).rounds()[1]
    assert [(failure["client"], failure["phase"], failure["kind"]) for failure in line["failures"]] == [
        ("b", "clients", "refused"),
        ("d", "clients", "refused"),
    ]
    assert all(np.isfinite(metrics["loss"]) for metrics in line["clients"].values() if "loss" in metrics)


@pytest.mark.parametrize("name", [*TRAINING, *LOCAL])
def test_a_reply_with_more_than_it_should_have_is_refused(prepare, federate, monkeypatch, name):
    entry = registry.find("strategy", name).spec

    def train(workload, message, context):
        content = entry.client.train(workload, message, context)
        if context.partition == 0:
            content["metrics"]["labels"] = 1.0
        if context.partition == 4:
            content["images"] = ArrayRecord({"x": Array(np.zeros(2, np.float32))})
        return content

    put(monkeypatch, "strategy", name, replace(entry, client=replace(entry.client, train=train)))
    line = federate(prepare(name, rounds=1, min_clients=3)).rounds()[1]
    assert [(failure["client"], failure["kind"]) for failure in line["failures"]] == [
        ("a", "refused"),
        ("e", "refused"),
    ]
    assert "its records and metrics are" in line["failures"][0]["reason"]


SUPERVISED = [name for name in STRATEGIES if registry.find("strategy", name).spec.needs_client_labels]


@pytest.mark.parametrize("name", SUPERVISED)
def test_clients_without_labels_are_refused_before_anything_is_made(prepare, tmp_path, name):
    with pytest.raises(ConfigError, match=rf"strategy '{name}' trains on the clients' own labels"):
        prepare(name, **{"blobs.client_labels": False})
    assert [path.name for path in tmp_path.iterdir()] == ["toy.toml"]


@pytest.mark.parametrize("name", ["dualadapt", "fed_mcd", "fed_dann"])
def test_a_model_without_parts_is_refused(prepare, name):
    with pytest.raises(
        ConfigError, match=rf"{name} needs a model with .features and .head; Linear of workload 'blobs'"
    ):
        prepare(name, **{"blobs.headless": True})


def test_adabn_needs_batch_norms(prepare):
    with pytest.raises(ConfigError, match=r"adabn needs a model with batch norms; Linear of workload 'blobs' has none"):
        prepare("adabn", **{"blobs.headless": True})


@pytest.mark.parametrize("name", ["self_training", "fed_mcd"])
def test_a_workload_without_classes_is_refused(prepare, monkeypatch, name):
    read = Blobs.data

    def data(self, partition, split):
        examples = read(self, partition, split)
        if "y" in examples.columns:
            examples.columns["y"] = examples.columns["y"].float()
        return examples

    monkeypatch.setattr(Blobs, "data", data)
    with pytest.raises(ConfigError, match=rf"{name} needs one class for each example; .* torch.float32 of shape"):
        prepare(name)


WITH_RULES = [
    name for name in STRATEGIES if "aggregation" in section_fields(registry.find("strategy", name).spec.options)
]


def test_strategies_whose_clients_upload_whole_models_take_a_rule(prepare):
    assert {"self_training", "fed_mcd", "fed_dann", "oracle", "fedprox"} <= set(WITH_RULES)
    chosen = prepare("self_training", **{"self_training.aggregation": "fedmedian"})
    assert chosen.plugins["aggregation"] == registry.find("aggregation", "fedmedian")
    assert "aggregation" not in prepare("source_only").plugins
    with pytest.raises(ConfigError, match=r"unknown option 'fedavg.aggregation'"):
        prepare("fedavg", **{"fedavg.aggregation": "krum"})


@pytest.mark.parametrize("name", WITH_RULES)
def test_a_rule_changes_the_run_and_brings_its_options(prepare, federate, name):
    plain, option = prepare(name, rounds=1), f"{name}.aggregation"
    assert "fedadam.tau" not in plain.options()
    with pytest.raises(ConfigError, match=r"option 'fedadam.tau' has no effect in this run.*aggregation 'fedavg'"):
        prepare(name, **{"fedadam.tau": 0.1})
    chosen = prepare(name, rounds=1, **{option: "fedadam", "fedadam.tau": 0.1})
    assert chosen.options()["fedadam.tau"] == chosen.aggregation.tau == 0.1
    hashes = [federate(table).manifest()["weights_sha256"] for table in (plain, chosen)]
    assert hashes[0] != hashes[1]


def test_a_rule_that_does_not_exist_is_named(prepare):
    with pytest.raises(ConfigError, match=r"unknown aggregation 'fedadm'.*fedadam"):
        prepare("self_training", **{"self_training.aggregation": "fedadm"})


def test_a_rule_that_needs_more_clients_is_refused_with_any_strategy(prepare):
    rule = {"oracle.aggregation": "krum", "krum.num_malicious": 2}
    with pytest.raises(ConfigError, match=r"aggregation 'krum' with these options needs 7 replies.*sure of 5"):
        prepare("oracle", **rule)


@pytest.mark.parametrize("rule", ["qfedavg", "dp_fixed", "dp_adaptive"])
def test_rules_that_ask_something_of_clients_work_with_unlabeled_ones(prepare, federate, rule):
    side = {f"{rule}.clip_on": "client"} if rule.startswith("dp") else {}
    if rule == "qfedavg":  # a loss needs labels
        with pytest.raises(ConfigError, match=r"aggregation 'qfedavg' weighs clients by their loss"):
            prepare("self_training", **{"self_training.aggregation": rule})
        return
    line = federate(prepare("self_training", rounds=1, **{"self_training.aggregation": rule, **side})).rounds()[1]
    assert not line["failures"] and line["server"]["epsilon"] > 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_client_functions_are_what_their_names_say(name):
    functions = registry.find("strategy", name).spec.client
    assert functions.train_many is None or hasattr(functions.train_many, "memory")
    assert not hasattr(functions.example_weights, "memory")
