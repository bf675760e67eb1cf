"""A second comparison in a folder shares the cells of the first and keeps its tables."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import fedlab
import many_clients
import toy
from fedlab.comparison import earlier, files
from fedlab.comparison.cell import Cell
from fedlab.comparison.result import Comparison
from tables import put


def made(folder, command="fedlab compare toy --strategies a", run="cells/1-0", **facts):
    cells = [Cell("a", "a", 0, {}, run, "finished")]
    return Comparison(folder, "toy", [0], "a", "accuracy", cells, command=command, **facts)


def write(comparison, text):
    comparison.directory.mkdir(parents=True, exist_ok=True)
    comparison.write()
    for name in earlier.FILES:
        (comparison.directory / name).write_text(text)


def test_the_first_comparison_and_the_same_again_move_nothing(tmp_path):
    first = made(tmp_path)
    assert earlier.keep_earlier(first) is None
    write(first, "first")
    again = replace(first, command=f"{first.command} --jobs 2 --out here", created="later")
    assert earlier.keep_earlier(again) is None
    assert (tmp_path / "table.csv").read_text() == "first"


def test_every_file_of_a_comparison_is_kept(tmp_path):
    cells = []
    for name in ("low", "high"):
        run = many_clients.write_run(tmp_path / "cells", name=name)
        cells.append(Cell(name, "s", 0, {}, f"cells/{run.directory.name}", "finished"))
    many = Comparison(tmp_path, "toy", [0], "low", "accuracy", cells, command="fedlab compare toy")
    before = {path.name for path in tmp_path.iterdir()}
    files.write_files(many)
    assert {path.name for path in tmp_path.iterdir()} - before == set(earlier.FILES)


@pytest.mark.parametrize(
    "changed",
    [
        {"command": "fedlab compare toy --strategies a --seeds 2"},
        {"run": "cells/2-0"},  # the preset's file has changed
        {"target": 0.5},
    ],
)
def test_the_tables_of_another_comparison_are_kept_and_can_be_read(tmp_path, changed):
    write(made(tmp_path), "first")
    place = earlier.keep_earlier(made(tmp_path, **changed))
    assert place is not None and earlier.earlier_comparisons(tmp_path) == [place]
    assert {(place / name).read_text() for name in earlier.FILES} == {"first"}
    assert not (tmp_path / "table.csv").exists()
    kept = Comparison.read(place)
    assert kept.path(kept.cells[0]).resolve() == tmp_path / "cells" / "1-0"


def test_a_kill_between_two_files_loses_none(tmp_path):
    first, second = made(tmp_path), made(tmp_path, run="cells/2-0")
    write(first, "first")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curve.pdf").touch()
    place = tmp_path / "earlier" / earlier.identity(first)
    place.mkdir(parents=True)
    (tmp_path / "table.csv").rename(place / "table.csv")
    assert earlier.keep_earlier(second) == place
    assert (place / "figures" / "curve.pdf").is_file() and not (tmp_path / "figures").exists()
    assert {(place / name).read_text() for name in earlier.FILES} == {"first"}


def test_two_comparisons_of_one_preset_share_cells_and_both_have_their_tables(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    monkeypatch.chdir(tmp_path)
    preset, short = toy.write_preset(tmp_path), {"rounds": 1, "blobs.domains": "near"}
    folder = tmp_path / "comparisons" / "toy"
    fedlab.compare(preset, "source_only", seeds=1, overrides=short, jobs=1)
    first = (folder / "table.json").read_text()
    fedlab.compare(preset, "source_only,fedbn:blobs.client_labels=true", seeds=1, overrides=short, jobs=1)
    (place,) = earlier.earlier_comparisons(folder)
    assert (place / "table.json").read_text() == first
    assert {row["label"] for row in json.loads((folder / "table.json").read_text())["rows"]} == {"source_only", "fedbn"}
    assert list(Comparison.read(place).final["label"]) == ["source_only"]
    assert len(list((folder / "cells").iterdir())) == 2
