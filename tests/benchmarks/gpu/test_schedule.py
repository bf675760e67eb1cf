"""Tasks in processes of their own: a failure, a death and an end of time cost one row each."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from benchmarks.gpu.rows import Row
from benchmarks.gpu.schedule import OVER, Task, not_begun, perform_all

HERE = "test_schedule"


def good(value: float) -> Iterator[Row]:
    print("what a task prints is no answer")
    yield Row("part", "good", value)


def bad() -> Iterator[Row]:
    yield Row("part", "before", 1.0)
    raise ValueError("no such thing\nsecond line")


def death() -> Iterator[Row]:
    os._exit(3)
    yield


def endless() -> Iterator[Row]:
    time.sleep(600)
    yield


def perform(tasks, seconds, monkeypatch, processes=1):
    rows: list[Row] = []
    path = os.pathsep.join([os.path.dirname(__file__), os.getcwd(), os.path.join(os.getcwd(), "src")])
    perform_all(tasks, seconds, processes, rows.extend, {"PYTHONPATH": path})
    return rows


def task(name, **options):
    return Task("part", name, f"{HERE}:{name}", options)


@pytest.mark.engine
def test_each_task_has_its_rows_and_no_other_is_lost(monkeypatch):
    rows = perform([task("bad"), task("death"), task("good", value=2.0)], 60, monkeypatch)
    assert [(row.what, row.value) for row in rows] == [
        ("before", 1.0),
        ("bad", None),
        ("death", None),
        ("good", 2.0),
    ]
    assert rows[1].error == "ValueError: no such thing second line"
    assert "its process ended" in rows[2].error
    assert not rows[3].error


@pytest.mark.engine
def test_a_task_is_stopped_at_the_end_of_its_part_and_those_after_it_are_not_begun(monkeypatch):
    rows = perform([task("endless"), task("good", value=2.0)], 3, monkeypatch)
    assert [(row.what, row.value, row.note) for row in rows] == [("endless", None, ""), (OVER, 1.0, "good")]
    assert "end of its time" in rows[0].error and not rows[1].error


def test_many_tasks_that_were_not_begun_are_one_short_row():
    row = not_begun([task(f"task{number}") for number in range(80)])
    assert row.value == 80 and row.note.startswith("task0, task1, ") and len(row.note) < 210
