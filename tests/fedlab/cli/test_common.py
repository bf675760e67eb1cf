"""Tables of a terminal and of a pipe, and the closing table of a run with few clients, many, and some not asked."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

import many_clients
from fedlab.cli.common import plain_lines, run_and_print, show_result, show_rows
from fedlab.cli.errors import InterruptedWithAdvice
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


def test_in_a_pipe_a_long_cell_makes_its_own_row_longer_and_no_other():
    path = "/data/" + 150 * "x"
    rows = [("a", "1", "short"), ("b", 30 * "9", "three words more"), ("c", "2", f"see {path} there"), ("d", "", "")]
    assert list(plain_lines(rows)) == [
        f"a  1{19 * ' '}  short",
        f"b  {30 * '9'}  three words more",
        f"c  2{19 * ' '}  see",
        f"{25 * ' '}{path}",
        f"{25 * ' '}there",
        "d",
    ]
    wide = [(70 * "w", 30 * "v", " ".join(40 * ["word"]))]
    assert list(plain_lines(wide)) == ["  ".join(wide[0])]
    runs = [("run", "what", "status"), ("adapt-photos-0", "dualadapt on image_folder", "finished")]
    assert [line.index(row[2]) for line, row in zip(plain_lines(runs), runs, strict=True)] == [43, 43]


def test_the_words_of_a_table_are_no_markup(monkeypatch):
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    monkeypatch.setattr("fedlab.cli.common.stdout", console)
    show_rows("sets", [("a[b]", "[red]c[/red]")], "name", "what")
    show_rows("none", [], "name", "what")
    shown = console.file.getvalue()
    assert "a[b]  [red]c[/red]" in shown and "none" in shown


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys):
    def stopped(voice):
        raise KeyboardInterrupt

    for advice, words in (("", f"Continue with: fedlab resume {tmp_path}"), ("the same command goes on", "the same")):
        with pytest.raises(InterruptedWithAdvice, match=words):
            run_and_print(tmp_path, stopped, quiet=False, as_json=False, advice=advice)
    assert capsys.readouterr().out == ""


def test_the_result_is_a_line_a_folder_or_a_table(tmp_path, capsys):
    result = many_clients.write_run(tmp_path, global_test=True)
    run_and_print(tmp_path, lambda voice: result, quiet=True, as_json=False)
    assert capsys.readouterr().out == f"{result.directory}\n"
    run_and_print(tmp_path, lambda voice: result, quiet=False, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["event"], told["run_dir"], len(told["clients"])) == ("result", str(result.directory), 1000)
