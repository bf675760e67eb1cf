"""Runs of Flower apps of both APIs: repeatable, recorded like any other run, and failing with a sentence."""

from __future__ import annotations

import json
import sys

import pytest

from fedlab.cli.common import show_result
from fedlab.errors import ConfigError, RunError
from fedlab.flower_apps.engine import AppEngine
from fedlab.flower_apps.project import FlowerProject
from fedlab.flower_apps.run import LOG, FlowerRun
from fedlab.launch import resume
from fedlab.runs.directory import RunDirectory
from flower_apps import CLIENT, OLD_CLIENT, OLD_SERVER, ONE_WAY, ONE_WAY_CLIENT, OWN_LOOP, SERVER, write_app

APIS = {"message": (SERVER, CLIENT), "older": (OLD_SERVER, OLD_CLIENT), "own loop": (OWN_LOOP, CLIENT)}


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Pages are drawn in one test only: drawing takes longer than these apps."""
    monkeypatch.setattr("fedlab.flower_apps.run.write_page", lambda result: result)


def run(folder, runs, seed=0, **overrides):
    app = FlowerRun(FlowerProject.read(folder).with_overrides(overrides), seed, threads=1)
    return app.run(app.create(runs))


@pytest.mark.parametrize("api", APIS)
def test_the_same_seed_gives_the_same_bits_and_another_one_others(api, tmp_path):
    folder, runs = write_app(tmp_path / "app", *APIS[api]), tmp_path / "runs"
    first, again, other = run(folder, runs), run(folder, runs), run(folder, runs, seed=1)
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert [one["round"] for one in first.rounds][-2:] == [1, 2]
    assert all(one["bytes"]["client-2"]["train_up"] > 0 for one in first.rounds if one["round"])


def test_metrics_come_from_replies_and_from_the_servers_own_test(tmp_path):
    result = run(write_app(tmp_path / "app"), tmp_path / "runs")
    assert [one["round"] for one in result.rounds] == [0, 1, 2] and set(result.rounds[0]["score"]) == {"accuracy"}
    last, table = result.rounds[-1], result.metric_table
    assert last["clients"]["client-1"] == {"train_loss": 2.0, "train_calls": 5.0, "train_num-examples": 2.0} | {
        key: value for key, value in last["clients"]["client-1"].items() if not key.startswith("train")
    }
    tested = {name: values["eval_acc"] for name, values in last["clients"].items() if "eval_acc" in values}
    assert len(tested) == 2 and last["mean"]["eval_acc"] == pytest.approx(sum(tested.values()) / 2)
    assert last["mean"]["train_loss"] == 2.0 and not {"num-examples", "train_num-examples"} & last["mean"].keys()
    assert table.direction("eval_acc") == 1 and table.direction("train_loss") == -1
    assert table.primary_scores(result.score()) == ["accuracy"]
    assert result.manifest["strategy"] == "FedAvg" and result.manifest["status"] == "finished"


def test_the_older_api_reports_the_same_and_its_clients_are_called_in_this_thread(tmp_path):
    result = run(write_app(tmp_path / "app", OLD_SERVER, OLD_CLIENT), tmp_path / "runs")
    last = result.rounds[-1]
    assert not last["failures"] and last["score"] == {"loss": 0.5, "accuracy": pytest.approx(0.2)}
    assert last["clients"]["client-2"] == {
        "train_loss": 1.0,
        "train_num-examples": 3.0,
        "loss": 0.5,
        "accuracy": 0.5,
        "num-examples": 4.0,
    }


def test_modules_of_an_app_are_of_one_run_and_leave_no_trace(tmp_path):
    first, second = write_app(tmp_path / "a"), write_app(tmp_path / "b", client=CLIENT.replace("0.25", "0.5"))
    path = list(sys.path)
    found = [run(folder, tmp_path / "runs").rounds[-1]["clients"] for folder in (first, first, second)]
    assert found[0] == found[1] and found[0]["client-2"]["train_calls"] == 6.0
    assert max(one.get("eval_acc", 0) for one in found[2].values()) > max(
        one.get("eval_acc", 0) for one in found[0].values()
    )
    assert sys.path == path and "tiny" not in sys.modules and "tiny.server" not in sys.modules


def test_what_an_app_prints_and_flower_logs_is_in_its_run_directory(tmp_path, capsys):
    result = run(write_app(tmp_path / "app"), tmp_path / "runs", **{"model.name": "curve"})
    log = (result.directory / LOG).read_text()
    assert "the app prints curve" in log and "Starting FedAvg strategy" in log
    assert not capsys.readouterr().out


@pytest.mark.parametrize("ending", ["assert False, 'no data'", "raise SystemExit(3)"])
def test_a_client_that_fails_is_recorded_and_the_others_go_on(ending, tmp_path):
    broken = CLIENT.replace("calls.append(1)", f"if context.node_config['partition-id'] == 1: {ending}")
    result = run(write_app(tmp_path / "app", client=broken), tmp_path / "runs")
    (failure,) = result.rounds[1]["failures"]
    assert failure["client"] == "client-1"
    assert any(words in failure["reason"] for words in ("AssertionError: no data", "sys.exit(3) was called in"))
    assert set(result.rounds[1]["bytes"]) == {"client-0", "client-1", "client-2"}


@pytest.mark.parametrize(("server", "client"), [APIS["message"], APIS["older"]])
def test_a_round_that_no_client_could_answer_ends_the_run(server, client, tmp_path):
    broken = client.replace("np.random.rand", "np.random.no_such")
    with pytest.raises(RunError, match=r"(?s)no client could answer.*'train' in round 1; client-0:.*no_such") as caught:
        run(write_app(tmp_path / "app", server, broken), tmp_path / "runs")
    assert "Traceback" in str(caught.value)
    directory = RunDirectory.open(tmp_path / "runs" / "tiny-app-0")
    assert directory.manifest()["status"] == "failed" and len(directory.rounds()[-1]["failures"]) == 3


def test_a_bug_of_the_server_is_named_with_its_line(tmp_path):
    folder = write_app(tmp_path / "app", server=SERVER.replace('"accuracy":', "1 / 0:"))
    with pytest.raises(RunError, match=r"ZeroDivisionError: division by zero \(.*server.py:\d+\)") as caught:
        run(folder, tmp_path / "runs")
    directory = tmp_path / "runs" / "tiny-app-0"
    assert str(directory / LOG) in str(caught.value) and "Traceback" in (directory / LOG).read_text()
    assert RunDirectory.open(directory).manifest()["status"] == "failed"


@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "return", "raise KeyboardInterrupt"])
def test_a_server_that_ends_early_is_no_success(ending, tmp_path):
    folder = write_app(tmp_path / "app", server=SERVER.replace('    print("the', f'    {ending}\n    print("the'))
    with pytest.raises((RunError, KeyboardInterrupt)):
        run(folder, tmp_path / "runs")
    status = RunDirectory.open(tmp_path / "runs" / "tiny-app-0").manifest()["status"]
    assert status == ("interrupted" if "Keyboard" in ending else "failed")


def test_an_app_that_cannot_be_imported_makes_no_directory(tmp_path):
    cases = {
        "import no_such_package.part": "needs the package 'no_such_package'.*no-such-package.extra.==1.2.*not checked"
        r".*pip install 'no-such-package\[extra\]'",
        "import tiny.missing": "imports 'tiny.missing', which is not in",
        "import urllib.error; raise urllib.error.URLError('no route')": "on another machine, which cannot be reached",
        "1 / 0": r"cannot be used: ZeroDivisionError.*client.py:1",
    }
    for number, (line, message) in enumerate(cases.items()):
        folder = write_app(tmp_path / str(number), client=f"{line}\n{CLIENT}")
        with pytest.raises(ConfigError, match=message):
            run(folder, tmp_path / "runs")
    with pytest.raises(ConfigError, match="is a list; a ServerApp is expected"):
        run(write_app(tmp_path / "list", server="app = []"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_data_that_cannot_be_fetched_are_named(tmp_path):
    fetch = "def fetch(repo_id):\n    raise ConnectionError('no route to host')\n"
    folder = write_app(tmp_path / "app", client=CLIENT.replace("calls.append(1)", "fetch('owner/digits')") + fetch)
    with pytest.raises(RunError, match=r"tiny-app asks for 'owner/digits' on another machine.*HF_HOME"):
        run(folder, tmp_path / "runs")


def test_such_a_run_is_read_again_but_does_not_go_on(tmp_path):
    result = run(write_app(tmp_path / "app"), tmp_path / "runs", **{"learning-rate": "0.25", "verbose": "true"})
    assert result.config["config.learning-rate"] == 0.25 and result.config["clients"] == 3
    command = f"fedlab flower {tmp_path / 'app'} learning-rate=0.25 verbose=true --threads 1 --seed 0"
    assert result.manifest["command"] == command
    with pytest.raises(RunError, match="run of a Flower app.*fedlab flower"):
        resume(result.directory, overrides={"rounds": 5})


def test_the_page_names_the_command_and_the_result_is_printed(tmp_path, monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.undo()
    result = run(write_app(tmp_path / "app"), tmp_path / "runs")
    page = (result.directory / "report.html").read_text().replace("<span>", "").replace("</span>", "")
    assert "FedAvg on tiny-app" in page and f"fedlab flower {tmp_path / 'app'}" in page and "fedlab resume" not in page
    show_result(result, Console(width=200))
    assert LOG in capsys.readouterr().out
    events = [json.loads(line)["event"] for line in (result.directory / "events.jsonl").read_text().splitlines()]
    assert events.count("round") == 3 and events[-1] == "finished"


def test_messages_whose_replies_nobody_reads_are_delivered_before_later_ones(tmp_path):
    result = run(write_app(tmp_path / "app", ONE_WAY, ONE_WAY_CLIENT), tmp_path / "runs")
    assert [one["mean"]["train_applied"] for one in result.rounds] == [0.0, 1.0]
    assert not result.weights_sha256  # no client sent arrays


@pytest.mark.engine
def test_every_engine_gives_the_same_bits_and_keeps_what_clients_keep(tmp_path):
    threads = write_app(tmp_path / "app", client=CLIENT.replace("len(calls)", "torch.get_num_threads()"))
    one_way = write_app(tmp_path / "one-way", ONE_WAY, ONE_WAY_CLIENT)
    processes, private_ray = AppEngine.of_processes(2), AppEngine("ray")
    for folder, engine in ((threads, processes), (one_way, processes), (threads, private_ray)):
        plain, other = (FlowerRun(FlowerProject.read(folder), threads=1, engine=one) for one in (AppEngine(), engine))
        expected, found = (run.run(run.create(tmp_path / "runs")) for run in (plain, other))
        assert found.weights_sha256 == expected.weights_sha256
        assert [one["clients"] for one in found.rounds] == [one["clients"] for one in expected.rounds]
        assert all(one["mean"].get("train_calls", 1.0) == 1.0 for one in found.rounds)  # threads
        assert found.manifest["engine"] == engine.name and " ".join(engine.written()) in found.manifest["command"]


@pytest.mark.engine
def test_a_failure_in_a_worker_is_the_same_sentence(tmp_path):
    fetch = "def fetch(repo_id):\n    raise ConnectionError('no route to host')\n"
    folder = write_app(tmp_path / "app", client=CLIENT.replace("calls.append(1)", "fetch('owner/digits')") + fetch)
    app = FlowerRun(FlowerProject.read(folder), threads=1, engine=AppEngine.of_processes(2))
    with pytest.raises(RunError, match=r"tiny-app asks for 'owner/digits' on another machine"):
        app.run(app.create(tmp_path / "runs"))
