"""Parts that the GPU benchmark is asked for, in their order, and the time of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import gpu_tests, parts
from benchmarks.gpu.parts import ORDER, PARTS, Item, allotment, items_of, tasks_of
from benchmarks.gpu.rows import Row
from benchmarks.gpu.schedule import Task


def test_parts_and_some_of_their_tasks_come_in_the_order_given():
    found = command.parse(["--only", "rounds", "long:mixer", "right", "--match", "digits", "--set", "a.b=3"]).items
    assert [(item.part, item.match) for item in found] == [("rounds", "digits"), ("long", "mixer"), ("right", "digits")]
    assert found[1].settings == {"a.b": "3"}
    assert [item.part for item in command.parse([]).items] == [name for name in PARTS if name != "tests"]


def test_a_part_that_is_not_there_is_named_with_those_that_are(capsys):
    with pytest.raises(SystemExit):
        command.parse(["--only", "lang"])
    assert "no part 'lang'" in capsys.readouterr().err


def test_the_order_of_a_quarter_of_an_hour_has_its_own_options():
    found = items_of(["quarter"], "", {"molecules.samples": 5})
    assert [item.part for item in found] == ["tests", "long", "long", "long", "clients", "rounds"]
    assert found[2].settings == {"server.final_lr_fraction": 0.02, "molecules.samples": 5}
    for item in ORDER:
        assert tasks_of(item, "cpu", 60.0, Path("runs"), 1, 0.0), item


def test_time_that_a_part_leaves_goes_to_those_after_it():
    items = [Item("steps", weight=3.0), Item("right", weight=1.0)]
    assert allotment(100, items, 0) == 75
    assert allotment(90, items, 1) == 90  # the first took ten
    assert allotment(-5, items, 1) == 0


def test_tasks_by_time_one_after_another_divide_it():
    at_once = tasks_of(Item("long"), "cpu", 100.0, Path("runs"), 6, 0.0)
    in_turn = tasks_of(Item("long", settings={"seed": 1}), "cpu", 120.0, Path("runs"), 2, 60.0)
    assert {task.options["seconds"] for task in at_once} == {92.0}
    assert {task.options["seconds"] for task in in_turn} == {32.0}  # three turns of two
    assert in_turn[0].options["settings"] == {"seed": 1} and in_turn[0].options["planned"] == 60.0
    assert "planned" not in tasks_of(Item("rounds"), "cpu", 100.0, Path("runs"), 1, 60.0)[0].options


def test_a_part_without_tasks_costs_a_row_and_no_other_part(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ModuleNotFoundError("No module named 'this'")

    done = []
    monkeypatch.setattr(parts, "PARTS", {**PARTS, "right": parts.Part(broken, 1, 1.0)})
    monkeypatch.setattr(command, "perform_all", lambda tasks, *_: done.extend(task.part for task in tasks))
    monkeypatch.setattr("sys.argv", ["-", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    assert command.main() == 1
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert row["part"] == "right" and "No module named 'this'" in row["error"]
    assert {"steps", "clients", "long"} <= set(done)
    assert "FAILED" in capsys.readouterr().out


def test_tiny_sizes_of_a_cpu_reach_no_goal(tmp_path, monkeypatch):
    def perform(tasks, seconds, processes, report, environment):
        report([Row("rounds", "a round", 0.5, "s", goal=1.0, at_most=True)])

    monkeypatch.setattr(command, "perform_all", perform)
    monkeypatch.setattr("sys.argv", ["-", "--only", "rounds", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    assert command.main() == 0
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert row["value"] == 0.5 and row["goal"] is None


def test_long_runs_are_packed_where_they_are_asked_for(tmp_path, monkeypatch):
    def train(tasks, *_):
        (tmp_path / "runs" / f"{tasks[0].what}-0").mkdir(parents=True)

    monkeypatch.setattr(command, "perform_all", train)
    monkeypatch.setattr(command.carry, "pack_small", lambda run, out: ([tmp_path / "gpu.json"], True))
    options = ["--only", "long:mixer", "--device", "cpu", "--carry", str(tmp_path), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", ["-", *options, "--out", str(tmp_path / "gpu.json")])
    assert command.main() == 0
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert row["what"] == "mixer-cifar10-central-0, carried" and "nearly the same weights" in row["note"]


def test_a_data_folder_with_a_cache_is_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # as it was is as it will be
    monkeypatch.delenv("XDG_CACHE_HOME")
    command.use_cache_of_data()
    assert "XDG_CACHE_HOME" not in command.os.environ
    (tmp_path / "cache").mkdir()
    command.use_cache_of_data()
    assert command.os.environ["XDG_CACHE_HOME"] == str(tmp_path / "cache")


def test_tests_for_a_gpu_are_rows(tmp_path):
    (tmp_path / "tests.xml").write_text(
        "<testsuites><testsuite><testcase name='one' time='1.5'/>"
        "<testcase name='two' time='2'><failure message='ValueError: no'>a line</failure></testcase>"
        "<testcase name='three' time='0'><skipped message='one card'/></testcase></testsuite></testsuites>"
    )
    one, two, three = gpu_tests.rows_of(tmp_path / "tests.xml")
    assert one == Row("tests", "one", 1.5, "s", tally=True)
    assert two.error == "ValueError: no a line" and two.tally
    assert three.note == "skipped: one card" and not three.tally


def test_without_a_gpu_its_tests_are_found_and_not_run(monkeypatch):
    assert gpu_tests.tasks("cpu", 1.0, Path()) == [
        Task("tests", "tests/fedlab", "benchmarks.gpu.gpu_tests:check", {"collect_only": True})
    ]
    monkeypatch.setattr(gpu_tests, "FOLDER", Path("tests/fedlab/data"))
    (row,) = gpu_tests.check(True)
    assert row.value >= 1 and not row.error
    monkeypatch.setattr(gpu_tests, "FOLDER", Path("no/tests"))
    (row,) = gpu_tests.check(True)
    assert "run this in a clone" in row.note
