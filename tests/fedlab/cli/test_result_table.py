"""The closing table of a run with few clients, with many, and with some that were not asked."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import many_clients
from fedlab.cli.common import show_result
from fedlab.runs.result import Result


@pytest.fixture
def shown():
    def of(result):
        console = Console(file=io.StringIO(), width=100)
        show_result(result, console)
        return console.file.getvalue()

    return of


def test_many_clients_are_quantiles(shown, tmp_path):
    text = shown(many_clients.write_run(tmp_path))
    assert "After round 10, over 1000 clients, each on its own test data" in text
    assert "worst tenth" in text and "shard-" not in text


def test_a_run_that_tests_no_client_shows_the_global_model(shown, tmp_path):
    text = shown(many_clients.write_run(tmp_path, tested=0, global_test=True))
    assert "score     accuracy 90.0 %" in text and "client " not in text


def test_times_of_many_phases_are_not_broken_within_a_word_by_a_terminal(tmp_path, monkeypatch):
    result = many_clients.write_run(tmp_path)
    phases = ("pretrain", "evaluate", "server", "clients", "aggregate", "sample")
    monkeypatch.setattr(Result, "seconds", lambda self: dict.fromkeys(phases, 88.0))
    time = "8 min 48 s (" + ", ".join(f"{name} 1 min 28 s" for name in phases) + ")"
    wide, narrow = (Console(file=io.StringIO(), width=80, force_terminal=terminal) for terminal in (False, True))
    show_result(result, wide)
    assert f"time      {time}\n" in wide.file.getvalue()  # a line for scripts
    show_result(result, narrow)
    text = narrow.file.getvalue()
    lines = text[text.index("time      ") : text.index("bytes     ")].splitlines()
    assert len(lines) > 1 and all(len(line) <= 80 for line in lines)
    assert " ".join(line[10:] for line in lines) == time


def test_of_sampled_clients_those_that_were_asked_have_a_row(shown, tmp_path):
    result = many_clients.write_run(tmp_path, tested=3)
    last = result.rounds[-1]
    silent = next(name for name in last["bytes"] if name not in last["clients"])
    last["failures"] = [{"client": silent, "phase": "evaluate"}]
    rows = [
        line
        for line in shown(Result(result.directory, result.rounds, result.manifest, {})).splitlines()
        if "shard-" in line
    ]
    assert len(rows) == 4
    assert [row.split()[3] for row in rows if silent in row] == ["-"]
