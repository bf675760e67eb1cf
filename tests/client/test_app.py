"""The ClientApp answers every message: with a result, or with an error that says where and why."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from typer.testing import CliRunner

import toy
from disks import full_disk
from fedlab import __version__, registry
from fedlab.cli.app import app as cli
from fedlab.client.app import app, apply_node_settings
from fedlab.data.molecules.smiles import SkippedLinesWarning
from fedlab.deploy import client as deployed
from fedlab.engines.flower_internals import task_identity
from fedlab.engines.spec import flower_config
from fedlab.errors import ConfigError
from fedlab.privacy.accounting import Release, epsilon
from fedlab.runs.consent import config_digest
from fedlab.runs.privacy_ledger import DELTA
from fedlab.strategies.protocol import FINAL
from tables import put


@pytest.fixture
def context(monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    config = registry.load_config({**toy.SMALL, "strategy": "fedavg", "blobs.client_labels": True})
    with task_identity(1, 1):
        yield Context(1, 7, {"partition-id": 1, "num-partitions": 2}, RecordDict(), flower_config(config))


def message(kind, **changes):
    arrays = ArrayRecord({**toy.Net().state_dict(), **changes})
    return Message(RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 2})}), 7, kind)


def test_it_says_its_partition(context):
    assert app(message("query"), context).content["identity"]["partition"] == 1


def test_the_same_message_gets_the_same_answer_whatever_was_drawn_before(context):
    sent = message("train")
    first = app(sent, context).content["arrays"].to_torch_state_dict()
    torch.rand(5)
    second = app(sent, context).content["arrays"].to_torch_state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_round_draws_other_batches(context):
    torch.manual_seed(0)
    sent, later = message("train"), None
    torch.manual_seed(0)
    later = message("train")
    later.content["config"]["server-round"] = 3
    first, second = (app(one, context).content["arrays"].to_torch_state_dict() for one in (sent, later))
    assert not torch.equal(first["head.0.weight"], second["head.0.weight"])


def without_arrays():
    broken = message("evaluate")
    del broken.content["arrays"]
    return broken


def test_a_bug_becomes_an_error_with_its_traceback(context):
    reply = app(without_arrays(), context)
    assert reply.has_error()
    assert reply.error.reason.startswith("in evaluate: Traceback")
    assert "KeyError: 'arrays'" in reply.error.reason


def test_weights_of_another_model_are_a_sentence(context):
    reply = app(message("evaluate", **{"head.0.weight": torch.zeros(1)}), context)
    assert reply.error.reason.startswith(
        "in evaluate: these weights are of another model than Net: 1 array without a match"
    )


def test_over_the_network_a_bug_is_told_without_its_traceback_which_the_owner_keeps(context, tmp_path):
    context.node_config.update({"domain": toy.Blobs().clients[1], "state-dir": str(tmp_path)})
    reason = app(without_arrays(), context).error.reason
    assert reason.startswith("in evaluate: KeyError: 'arrays'")
    assert re.search(r" \(fedlab\.strategies\.records:\d+\)$", reason)
    assert "Traceback" not in reason and ".py" not in reason
    (noted,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert noted["reason"].startswith("Traceback") and 'strategies/records.py", line' in noted["reason"]


@pytest.mark.parametrize(("server_round", "final"), [(2, False), (2, True), (3, False)])
def test_the_owners_log_says_which_round_is_the_last(context, tmp_path, server_round, final):
    context.node_config["state-dir"] = str(tmp_path)
    sent = message("evaluate")
    sent.content["config"]["server-round"] = server_round
    if final:  # the server ends the run before its last round
        sent.content["config"][FINAL] = True
    assert not app(sent, context).has_error()
    logged = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {(event["event"], event["last"]) for event in logged} == {
        (kind, final or server_round == 3) for kind in ("saved", "evaluate")
    }


def test_what_the_server_refused_is_noted_for_the_owner_and_changes_nothing(context, tmp_path):
    torch.manual_seed(0)
    sent, plain = message("train"), None
    torch.manual_seed(0)
    plain = message("train")
    sent.content["refused"] = ConfigRecord({"round": 1, "reason": "its array w holds NaN or infinity"})
    context.node_config["state-dir"] = str(tmp_path)
    replies = [app(one, context).content["arrays"].to_torch_state_dict() for one in (sent, plain)]
    assert all(torch.equal(replies[0][name], replies[1][name]) for name in replies[0])
    refused, *others = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (refused["event"], refused["round"]) == ("refused", 1)
    assert refused["reason"] == "its array w holds NaN or infinity"
    assert [other["event"] for other in others] == ["train", "train"]


def test_an_owner_is_told_how_many_lines_of_the_data_are_not_used_and_where_they_are(context, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "mine.smi"
    file.write_text("\n".join([*("C" * (1 + i % 8) for i in range(60)), "bad", "C[Si]"]))
    values = {"threads": 1, "data.num_clients": 2, "client.steps": 1, "client.batch_size": 4, "data.max_examples": 300}
    config = registry.load_config("graphnvp-qm9", values)
    names = config.workload.clients
    node = {"domain": names[0], "data-folder": str(file), "state-dir": str(tmp_path / "state")}
    context = Context(1, 7, {"num-partitions": 2, **node}, RecordDict(), flower_config(config))
    arrays = ArrayRecord(config.workload.model().state_dict())
    sent = Message(RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})}), 7, "train")
    with pytest.warns(SkippedLinesWarning):
        assert not app(sent, context).has_error()
    events = [json.loads(line) for line in (tmp_path / "state" / "events.jsonl").read_text().splitlines()]
    data, trained, warning = events
    assert (data["event"], trained["event"], warning["event"]) == ("data", "train", "warning")
    (source,) = data["sources"]
    assert (source["name"], source["place"]) == (file.name, str(file.parent)) and 0 < source["examples"] < 60
    assert "2 of 62 molecules of" in warning["text"] and "all of them in" in warning["text"]
    assert len(Path(warning["text"].rpartition(" ")[2]).read_text().splitlines()) == 3


def test_a_clear_error_stays_a_sentence(context):
    text = context.run_config["overrides"]
    context.run_config["overrides"] = text.replace('strategy = "fedavg"', 'strategy = "fedavgg"')
    reply = app(message("train"), context)
    assert reply.error.reason.startswith("in train: unknown strategy 'fedavgg'; did you mean 'fedavg'?")


def test_a_run_config_that_names_nothing_is_a_sentence(context):
    context.run_config.clear()
    assert "Flower's run config names no preset" in app(message("train"), context).error.reason


def test_a_machines_own_settings_go_over_the_runs_whose_folders_are_the_servers():
    run = registry.load_config({"workload": "digits", "data.root": "/servers", "checkpoint.pretrain_cache": "/cache"})

    def settled(**node):
        context = Context(1, 7, {"partition-id": 0, **node}, RecordDict(), flower_config(run))
        return apply_node_settings(context), context.node_config["partition-id"]

    simulated, _ = settled()
    assert (simulated.data.root, simulated.checkpoint.pretrain_cache) == ("/servers", "/cache")
    domain = run.workload.clients[1]
    joined, partition = settled(domain=domain)
    assert (joined.data.root, joined.checkpoint.pretrain_cache, partition) == ("", "", 1)
    own, _ = settled(domain=domain, device="cpu", **{"data-root": "/mine", "data-folder": "/photos"})
    assert (own.run.device, own.data.root, own.data.client_folder) == ("cpu", "/mine", "/photos")
    assert own.workload.data_config == own.data
    with pytest.raises(ConfigError, match=r"this run has no client 'pacs'"):
        settled(domain="pacs")


@pytest.fixture
def personal(context):
    """The context of a client of a strategy that keeps a state on its clients."""
    text = context.run_config["overrides"]
    context.run_config["overrides"] = text.replace('strategy = "fedavg"', 'strategy = "ditto"')
    return context


def test_a_client_that_should_keep_a_state_and_has_no_place_for_it_says_so(personal):
    assert "in train: this strategy keeps a state on the client, and clients of this run have no run directory" in (
        app(message("train"), personal).error.reason
    )
    personal.node_config["domain"] = toy.Blobs().clients[1]
    assert (
        "this client has no folder for it; start it with `fedlab join`" in app(message("train"), personal).error.reason
    )


def test_a_deployed_client_keeps_its_states_apart_by_run_and_predicts_with_the_last(personal, tmp_path):
    personal.node_config.update({"domain": toy.Blobs().clients[1], "state-dir": str(tmp_path)})
    for run in ("first", "second"):
        sent = message("train")
        sent.content["config"]["run"] = run
        assert set(app(sent, personal).content) == {"arrays", "metrics", "config"}
    states = sorted((tmp_path / "client-state").glob("*/*.pt"))
    assert [path.name for path in states] == ["2.pt", "2.pt"]
    tested = message("evaluate")
    tested.content["config"]["run"] = "second"
    metrics = app(tested, personal).content["metrics"]
    assert {"accuracy_global", "accuracy_personal"} <= set(metrics)
    kept = torch.load(tmp_path / "model.pt", weights_only=True)["states"]["arrays"]
    own = [torch.load(path, weights_only=True)["model"] for path in states]
    assert all(torch.equal(kept[name], own[0][name]) or torch.equal(kept[name], own[1][name]) for name in kept)
    assert not torch.equal(kept["head.0.weight"], tested.content["arrays"].to_torch_state_dict()["head.0.weight"])


def greeted(context, **said):
    """A query with what a server says of itself."""
    config = registry.config_from_text(*registry.app_config(context.run_config))
    honest = {"version": __version__, "config": config_digest(config)}
    sent = message("query")
    sent.content["server"] = ConfigRecord({**honest, **said})
    return app(sent, context)


def test_a_server_of_the_same_version_and_options_is_answered(context):
    assert greeted(context).content["identity"]["partition"] == 1


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"version": "99.1"}, f"this client has fedlab {__version__}, and the server has fedlab 99.1; install"),
        ({"config": "f" * 64}, "understands the options of the run in another way than the server"),
    ],
)
def test_another_version_or_understanding_is_a_sentence_on_both_sides(context, tmp_path, said, sentence):
    context.node_config["state-dir"] = str(tmp_path)
    assert sentence in greeted(context, **said).error.reason
    (noted,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert noted["status"] == "refused" and sentence in noted["reason"]


def test_what_the_owner_does_not_allow_is_refused_in_every_message_and_audited(context, tmp_path):
    context.node_config.update({"state-dir": str(tmp_path), "allow": "dualadapt", "server": "lab:9092"})
    for kind in ("query", "train", "evaluate"):
        reason = app(message(kind), context).error.reason
        assert "take part in strategy 'fedavg', and its owner allows dualadapt" in reason
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["refused", "failed", "failed"]
    assert all("its owner allows dualadapt" in line["reason"] for line in lines)


def test_the_audit_log_says_who_asked_and_what_was_sent(context, tmp_path):
    context.node_config.update({"state-dir": str(tmp_path), "server": "lab:9092"})
    reply = app(message("train"), context)
    (line,) = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert (line["event"], line["server"], line["strategy"], line["round"]) == ("train", "lab:9092", "fedavg", 2)
    assert line["sent"]["arrays"] == sorted(reply.content["arrays"])
    assert line["bytes"] > 4 * sum(array.numpy().size for array in reply.content["arrays"].values())


def test_nothing_is_sent_that_a_full_disk_keeps_from_the_audit_log(context, tmp_path, capsys):
    context.node_config["state-dir"] = str(tmp_path)
    with full_disk():
        for kind in ("train", "evaluate"):
            reason = app(message(kind), context).error.reason
            assert reason.startswith(f"in {kind}: {tmp_path}") and "file too large; raise the limit" in reason
        assert "consent.json: file too large" in app(message("query"), context).error.reason
    assert not app(message("query"), context).has_error()
    with full_disk(500):  # what is smaller was written before
        assert "nothing is sent that is not in the audit log" in app(message("train"), context).error.reason
    assert not app(message("train"), context).has_error()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["asked who it is", "train"]


def test_a_client_s_budget_ends_its_part_in_every_run(context, tmp_path, monkeypatch):
    release = Release(2.0)
    spec = registry.config_from_text(*registry.app_config(context.run_config)).plugins["strategy"].spec
    put(monkeypatch, "strategy", "fedavg", replace(spec, release=lambda config: release))
    text = context.run_config["overrides"]
    context.run_config["overrides"] = text.replace('noise = "auto"', 'noise = "secret"')
    limit = 1.001 * epsilon({release: 1}, DELTA)
    context.node_config.update({"state-dir": str(tmp_path), "max-epsilon": str(limit)})
    assert not app(message("query"), context).has_error()
    assert not app(message("train"), context).has_error()
    for kind in ("train", "query"):
        assert "one more release would bring it to" in app(message(kind), context).error.reason
    assert not app(message("evaluate"), context).has_error()
    noted = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert noted[1]["epsilon"] == pytest.approx(limit / 1.001) and noted[1]["max_epsilon"] == limit


def joined(monkeypatch, tmp_path, *options):
    """The node's settings that `fedlab join` starts its SuperNode with."""
    taken = []
    monkeypatch.setattr(deployed, "join", lambda options, write: taken.append(options))
    command = ["join", "lab:9092", "--insecure", "--domain", toy.Blobs().clients[1], "--state-dir", str(tmp_path)]
    assert CliRunner().invoke(cli, [*command, *options]).exit_code == 0
    return {**taken[0].node, "state-dir": str(taken[0].state_dir)}


def test_what_join_allows_is_what_its_client_app_answers(context, tmp_path, monkeypatch):
    for options, sentence in (
        (["--allow", "fedavg,dualadapt", "--allow-upload", "model", "--max-rounds", "50"], ""),
        (["--allow", "dualadapt"], "its owner allows dualadapt"),
        (["--allow-upload", "head"], "sends the client's model, and its owner allows to send head"),
        (["--max-epsilon", "8"], "owner allows epsilon 8 at delta 1e-05 in all"),
    ):
        context.node_config = joined(monkeypatch, tmp_path, *options)
        for kind in ("train", "evaluate"):  # a server may ask for a test alone
            reply = app(message(kind), context)
            assert sentence in reply.error.reason if sentence else not reply.has_error()
