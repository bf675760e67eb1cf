"""Bars of the live display say which of two times has passed and which is left."""

from __future__ import annotations

from rich.console import Console

from fedlab.runs.progress_bars import bars


def test_the_time_that_is_left_says_so_and_is_not_there_without_an_estimate():
    console, now = Console(width=100, color_system=None), [0.0]
    shown = bars(console)
    shown.get_time = lambda: now[0]
    task = shown.add_task("clients train", total=None)
    assert lines(console, shown) == ["clients train 0/? 0:00:00"]
    shown.update(task, total=4)
    assert lines(console, shown) == ["clients train 0/4 0:00:00"]
    for now[0] in (10.0, 20.0):
        shown.advance(task)
    assert lines(console, shown) == ["clients train 2/4 0:00:20 0:00:20 left"]


def lines(console, shown):
    with console.capture() as captured:
        console.print(shown)
    words = (line.split() for line in captured.get().splitlines())
    return [" ".join(word for word in line if not set(word) & set("━╸╺")) for line in words if line]
