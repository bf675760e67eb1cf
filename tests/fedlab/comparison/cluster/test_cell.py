"""A cell as another machine runs it."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

import toy
from fedlab import launch
from fedlab.comparison import cells
from fedlab.comparison.cluster.cell import RemoteCell
from fedlab.comparison.preset_work import PresetWork
from fedlab.comparison.workers import Task
from fedlab.config.resolve import with_options
from fedlab.runs.directory import RunDirectory


@pytest.fixture
def cell(tmp_path):
    config = with_options(launch.prepare(toy.PLUGIN, {"rounds": 1}), {"device": "auto"})
    return RemoteCell.of(Task(tmp_path / "cells" / "a-0", PresetWork(config)), tmp_path)


def test_the_device_is_that_of_the_machine_which_runs_the_cell(cell, tmp_path):
    assert cell() is None
    path = tmp_path / "cells" / "a-0"
    assert RunDirectory(path).manifest()["device"] == "cpu" and cells.device_of(path).startswith("cpu (")
    assert cells.device_of(tmp_path / "none") == ""


def test_a_machine_that_sees_other_files_or_has_another_version_says_so(cell, tmp_path):
    assert "is not the folder of this comparison here" in replace(cell, folder_id="now")()
    assert "is not the folder of this comparison here" in replace(cell, folder=str(tmp_path / "none"))()
    assert "planned with fedlab 9" in replace(cell, version="fedlab 9 on Python 3.11")()
    assert "0 usable GPUs" in replace(cell, work=cell.work.replace('device = \\"auto\\"', 'device = \\"cuda\\"'))()
    assert not (tmp_path / "cells").exists()


def test_a_job_of_an_earlier_command_knows_the_folder(cell, tmp_path):
    task = Task(tmp_path / "cells" / "b-0", PresetWork(launch.prepare(toy.PLUGIN, {})))
    assert RemoteCell.of(task, tmp_path).folder_id == cell.folder_id


def test_a_job_whose_time_is_over_is_queued_again_and_has_no_result(cell, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr("fedlab.comparison.cluster.cell.REQUEUED", threading.Event())

    def time_is_over(*_):
        assert cell.checkpoint().function == cell
        return "RuntimeError: SystemExit in the middle of a file"

    monkeypatch.setattr(cells, "run_cell", time_is_over)
    with pytest.raises(SystemExit):
        cell()
