"""A client's own directory: the model that predicts for its owner, and the log beside it."""

from __future__ import annotations

import json
import time
import warnings

import pytest
import torch

from disks import full_disk
from fedlab.errors import FedlabWarning, RunError
from fedlab.registry import config_from_text, load_config
from fedlab.runs.client_store import AUDIT, EVENTS, MODEL, MODEL_RUN, MODELS, STATE_DIR_KEY, ClientStore

STATES = {"arrays": {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(4)}, "head": {}}
CONFIG = load_config({"rounds": 3, "name": "run", "client.learning_rate": 0.1})


def events(folder):
    return [json.loads(line) for line in (folder / EVENTS).read_text(encoding="utf-8").splitlines()]


def read(folder):
    return torch.load(folder / MODEL, weights_only=True)


def save(store, number=1, states=STATES):
    store.save(states, CONFIG, "usps", {"round": number, "accuracy": 0.5})


@pytest.mark.parametrize("node_config", [{}, {STATE_DIR_KEY: ""}, {"partition-id": 1}])
def test_without_a_directory_nothing_is_saved(node_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = ClientStore.from_node_config(node_config)
    assert not store and store.path is None
    store.log_event("trained", round=1)
    save(store)
    assert not list(tmp_path.iterdir())


def test_the_directory_is_that_of_the_nodes_config_and_is_made_when_needed(tmp_path):
    folder = tmp_path / "clients" / "usps"
    store = ClientStore.from_node_config({STATE_DIR_KEY: str(folder)})
    assert store and store.path == folder and not folder.exists()
    store.log_event("trained", round=1)
    assert [path.name for path in folder.iterdir()] == [EVENTS]


def test_each_event_is_a_line_with_its_time(tmp_path):
    store, before = ClientStore(tmp_path), time.time()
    store.log_event("trained", round=1, loss=0.25)
    ClientStore(tmp_path).log_event("tested", round=1, client="Zürich")
    first, second = events(tmp_path)
    assert before - 0.01 <= first.pop("time") <= second.pop("time") <= time.time() + 0.01
    assert first == {"event": "trained", "round": 1, "loss": 0.25}
    assert second == {"event": "tested", "round": 1, "client": "Zürich"}


def test_the_model_is_read_without_running_any_code(tmp_path):
    save(ClientStore(tmp_path / "new"), number=7)
    content = read(tmp_path / "new")
    assert set(content) == {"config", "round", "client", "states"}
    assert (config_from_text("", content["config"]), content["round"], content["client"]) == (CONFIG, 7, "usps")
    assert content["states"].keys() == STATES.keys()
    assert torch.equal(content["states"]["arrays"]["weight"], STATES["arrays"]["weight"])
    assert content["states"]["arrays"]["steps"].dtype == torch.int64


def test_saving_is_told(tmp_path):
    save(ClientStore(tmp_path), number=2)
    (told,) = events(tmp_path)
    assert {key: told[key] for key in ("event", "round", "accuracy")} == {"event": "saved", "round": 2, "accuracy": 0.5}


def test_a_second_model_replaces_the_first_and_leaves_no_other_file(tmp_path):
    store = ClientStore(tmp_path)
    for number in (1, 2):
        save(store, number, {"arrays": {"weight": torch.full((3,), float(number))}})
    assert sorted(path.name for path in tmp_path.iterdir()) == [MODEL_RUN, EVENTS, MODEL]
    assert read(tmp_path)["round"] == 2
    assert read(tmp_path)["states"]["arrays"]["weight"].tolist() == [2.0] * 3
    assert [told["round"] for told in events(tmp_path)] == [1, 2]


def test_a_reader_that_holds_the_old_model_still_reads_it(tmp_path):
    store = ClientStore(tmp_path)
    save(store, 1)
    with (tmp_path / MODEL).open("rb") as held:
        save(store, 2)
        assert torch.load(held, weights_only=True)["round"] == 1
    assert read(tmp_path)["round"] == 2


def test_a_model_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    store = ClientStore(tmp_path)
    save(store, 1)
    with pytest.raises(AttributeError):
        save(store, 2, {"arrays": {"weight": None}})
    assert read(tmp_path)["round"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [MODEL_RUN, EVENTS, MODEL]
    assert len(events(tmp_path)) == 1


def test_a_model_that_does_not_fit_on_the_disk_is_a_warning_and_leaves_the_old_one(tmp_path):
    store = ClientStore(tmp_path)
    save(store, 1)
    with full_disk(60_000):
        save(store, 2, {"arrays": {"weight": torch.zeros(100_000)}})
    assert read(tmp_path)["round"] == 1
    warning = events(tmp_path)[-1]
    assert warning["event"] == "warning" and "model.pt: file too large" in warning["text"]


def test_an_event_that_cannot_be_written_goes_to_the_standard_error(tmp_path, capsys):
    with full_disk():
        ClientStore(tmp_path).log_event("train", status="failed", reason="why")
    said = capsys.readouterr().err
    assert "events.jsonl: file too large" in said and '"reason": "why"' in said


def test_warnings_of_ours_are_logged_and_all_are_shown(tmp_path):
    with pytest.warns() as shown, ClientStore(tmp_path).log_warnings():  # noqa: PT031  both are to be seen
        warnings.warn("3 files are not used", FedlabWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert [str(one.message) for one in shown] == ["3 files are not used", "old"]
    assert [(event["event"], event["text"]) for event in events(tmp_path)] == [("warning", "3 files are not used")]
    with pytest.warns(FedlabWarning), ClientStore(None).log_warnings():
        warnings.warn("as usual", FedlabWarning, stacklevel=1)


def test_the_model_of_another_run_is_put_aside_and_not_replaced(tmp_path):
    store = ClientStore(tmp_path)
    save(store, states={"arrays": {"w": torch.zeros(1)}})
    save(store, 2, states={"arrays": {"w": torch.ones(1)}})
    other = load_config({"rounds": 3, "name": "other", "strategy": "fedavg"})
    store.save({"arrays": {"w": torch.full((1,), 5.0)}}, other, "usps", {"round": 1})
    assert read(tmp_path)["states"]["arrays"]["w"] == 5
    (aside,) = (tmp_path / MODELS).iterdir()
    assert aside.name.startswith("run-")
    assert torch.load(aside, weights_only=True)["states"]["arrays"]["w"] == 1
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / MODEL, aside)} == {0o600}


def test_the_audit_log_is_added_to_and_its_owner_s_alone(tmp_path):
    store = ClientStore(tmp_path / "clients" / "usps")
    store.audit("train", strategy="dualadapt", bytes=5)
    store.audit("refused", reason="too many rounds")
    first, second = [json.loads(line) for line in (store.path / AUDIT).read_text().splitlines()]
    assert (first["event"], first["strategy"], first["bytes"]) == ("train", "dualadapt", 5)
    assert first["time"] <= second["time"] and "T" in first["time"] and first["version"]
    assert (store.path / AUDIT).stat().st_mode & 0o777 == 0o600
    assert store.path.stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_audited_is_an_error_and_leaves_no_part_of_a_line(tmp_path):
    store = ClientStore(tmp_path)
    store.audit("train", round=1)
    before = (tmp_path / AUDIT).read_bytes()
    with full_disk(len(before) + 20), pytest.raises(RunError, match=r"nothing is sent .*audit.jsonl: file too large"):
        store.audit("train", round=2)
    assert (tmp_path / AUDIT).read_bytes() == before
