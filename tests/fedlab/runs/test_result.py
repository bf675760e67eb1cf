"""What a run found, read back from its directory."""

from __future__ import annotations

import pytest

import many_clients
import toy
from fedlab.errors import RunError
from fedlab.registry import load_config
from fedlab.runs.directory import RunDirectory
from fedlab.runs.formatting import human_bytes
from fedlab.runs.metrics import MetricTable
from fedlab.runs.result import Result

MOVED = {"train_down": 10, "train_up": 1, "evaluate_down": 100, "evaluate_up": 3}


def line(server_round, **clients):
    return {
        "round": server_round,
        "clients": clients,
        "mean": {"accuracy": 0.5, "loss": 2.0},
        "bytes": dict.fromkeys(("usps", "svhn"), MOVED),
        "seconds": {"clients": 0.5, **({"pretrain": 1.0} if server_round == 0 else {})},
    }


@pytest.fixture
def directory(tmp_path):
    run = RunDirectory.create(tmp_path, load_config({"name": "lunch", "seed": 3}))
    run.log_round(line(0, usps={"loss": 3.0, "accuracy": 0.1, "num-examples": 9.0}))
    run.log_round(line(1, usps={"loss": 2.0, "accuracy": 0.4}, svhn={"loss": 2.5, "accuracy": 0.6}))
    return run


def test_a_frame_has_a_row_for_each_round_and_client(directory):
    frame = Result.read(directory.path).metrics
    assert list(frame.columns) == ["round", "client", "accuracy", "loss", "num-examples"]
    assert frame[["round", "client", "accuracy"]].to_numpy().tolist() == [
        [0, "usps", 0.1],
        [1, "usps", 0.4],
        [1, "svhn", 0.6],
    ]


def test_final_is_the_last_round_and_bytes_and_seconds_are_summed(directory):
    result = Result.read(directory.path)
    assert result.final() == {"usps": {"loss": 2.0, "accuracy": 0.4}, "svhn": {"loss": 2.5, "accuracy": 0.6}}
    assert [result.bytes(kind) for kind in MOVED] == [40, 4, 400, 12]
    assert result.seconds() == {"clients": 1.0, "pretrain": 1.0}


def test_the_hash_is_there_when_the_run_is_finished(directory):
    assert Result.read(directory.path).weights_sha256 == ""
    directory.update_manifest(status="finished", weights_sha256="abc")
    assert Result.read(directory.path).weights_sha256 == "abc"


def test_it_says_in_a_line_what_it_is(directory):
    assert repr(Result.read(directory.path)) == "<Result lunch-3: round 1, accuracy 0.5, loss 2>"


def test_a_run_without_a_round_is_a_sentence(tmp_path):
    run = RunDirectory.create(tmp_path, load_config({"name": "lunch", "seed": 3}))
    with pytest.raises(RunError, match="holds no finished round yet; `fedlab resume .*lunch-3` continues it"):
        Result.read(run.path)
    with pytest.raises(RunError, match="is no run directory"):
        Result.read(tmp_path)


def test_names_and_numbers_are_those_that_the_run_declares(directory):
    table = MetricTable.declared(toy.SPEC)
    directory.update_manifest(**table.to_manifest())
    result = Result.read(directory.path)
    assert result.metric_table == table
    assert result.metric_names == ["accuracy", "loss"]
    assert repr(result) == "<Result lunch-3: round 1, accuracy 50.0 %, loss 2>"


def test_a_run_without_declarations_has_plain_names(directory):
    table = Result.read(directory.path).metric_table
    assert (table.title("valid_share"), table.direction("valid_share")) == ("valid share", 0)
    assert table.format("accuracy", 0.5) == "0.5"
    assert table.role("num-examples") == "hidden" and "evaluate" in table.evaluation_phases


def test_bytes_for_people():
    assert [human_bytes(count) for count in (0, 999, 1000, 12_345, 1_234_567, 9_876_543_210)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 kB",
        "1.2 MB",
        "9.88 GB",
    ]


def test_a_run_that_tests_no_client_has_the_global_model(tmp_path):
    result = many_clients.write_run(tmp_path, tested=0, global_test=True)
    assert result.metrics.empty and list(result.metrics.columns) == ["round", "client"]
    assert result.final() == {} and result.score()["accuracy"] == pytest.approx(0.9)
    assert repr(result) == "<Result many-0: round 10, accuracy 90.0 %>"
