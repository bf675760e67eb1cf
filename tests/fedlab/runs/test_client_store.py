"""A client's own directory: the model that predicts for its owner, and the log beside it."""

from __future__ import annotations

import json
import time

import pytest
import torch

from fedlab.registry import config_from_text, load_config
from fedlab.runs.client_store import EVENTS, KEY, MODEL, Keep

STATES = {"arrays": {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(4)}, "head": {}}
CONFIG = load_config({"rounds": 3, "name": "run", "client.learning_rate": 0.1})


def events(folder):
    return [json.loads(line) for line in (folder / EVENTS).read_text(encoding="utf-8").splitlines()]


def read(folder):
    return torch.load(folder / MODEL, weights_only=True)


def save(keep, number=1, states=STATES):
    keep.save(states, CONFIG, "usps", {"round": number, "accuracy": 0.5})


@pytest.mark.parametrize("node_config", [{}, {KEY: ""}, {"partition-id": 1}])
def test_without_a_directory_nothing_is_kept(node_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep = Keep.of(node_config)
    assert not keep and keep.path is None
    keep.tell("trained", round=1)
    save(keep)
    assert not list(tmp_path.iterdir())


def test_the_directory_is_that_of_the_nodes_config_and_is_made_when_needed(tmp_path):
    folder = tmp_path / "clients" / "usps"
    keep = Keep.of({KEY: str(folder)})
    assert keep and keep.path == folder and not folder.exists()
    keep.tell("trained", round=1)
    assert [path.name for path in folder.iterdir()] == [EVENTS]


def test_each_event_is_a_line_with_its_time(tmp_path):
    keep, before = Keep(tmp_path), time.time()
    keep.tell("trained", round=1, loss=0.25)
    Keep(tmp_path).tell("tested", round=1, client="Zürich")
    first, second = events(tmp_path)
    assert before - 0.01 <= first.pop("time") <= second.pop("time") <= time.time() + 0.01
    assert first == {"event": "trained", "round": 1, "loss": 0.25}
    assert second == {"event": "tested", "round": 1, "client": "Zürich"}


def test_the_model_is_read_without_running_any_code(tmp_path):
    save(Keep(tmp_path / "new"), number=7)
    content = read(tmp_path / "new")
    assert set(content) == {"config", "round", "client", "states"}
    assert (config_from_text("", content["config"]), content["round"], content["client"]) == (CONFIG, 7, "usps")
    assert content["states"].keys() == STATES.keys()
    assert torch.equal(content["states"]["arrays"]["weight"], STATES["arrays"]["weight"])
    assert content["states"]["arrays"]["steps"].dtype == torch.int64


def test_saving_is_told(tmp_path):
    save(Keep(tmp_path), number=2)
    (told,) = events(tmp_path)
    assert {key: told[key] for key in ("event", "round", "accuracy")} == {"event": "kept", "round": 2, "accuracy": 0.5}


def test_a_second_model_replaces_the_first_and_leaves_no_other_file(tmp_path):
    keep = Keep(tmp_path)
    for number in (1, 2):
        save(keep, number, {"arrays": {"weight": torch.full((3,), float(number))}})
    assert sorted(path.name for path in tmp_path.iterdir()) == [EVENTS, MODEL]
    assert read(tmp_path)["round"] == 2
    assert read(tmp_path)["states"]["arrays"]["weight"].tolist() == [2.0] * 3
    assert [told["round"] for told in events(tmp_path)] == [1, 2]


def test_a_reader_that_holds_the_old_model_still_reads_it(tmp_path):
    keep = Keep(tmp_path)
    save(keep, 1)
    with (tmp_path / MODEL).open("rb") as held:
        save(keep, 2)
        assert torch.load(held, weights_only=True)["round"] == 1
    assert read(tmp_path)["round"] == 2


def test_a_model_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    keep = Keep(tmp_path)
    save(keep, 1)
    with pytest.raises(AttributeError):
        save(keep, 2, {"arrays": {"weight": None}})
    assert read(tmp_path)["round"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [EVENTS, MODEL]
    assert len(events(tmp_path)) == 1
