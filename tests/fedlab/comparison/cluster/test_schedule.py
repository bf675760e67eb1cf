"""The order in which a cluster gets cells."""

from __future__ import annotations

import toy
from fedlab import launch
from fedlab.comparison.cluster.schedule import run_on
from fedlab.comparison.preset_work import PresetWork
from fedlab.comparison.workers import Task
from fedlab.runs.manifest import update_manifest


class OneAtATime:
    """A cluster on which the first of the submitted tasks ends when asked; source-only cells "train" a round first."""

    title = "a cluster"

    def __init__(self):
        self.log, self.running = [], []

    def open(self, folder):
        self.log.append("open")

    def submit(self, task):
        self.log.append(task.path.name)
        self.running.append(task)

    def ended(self, seconds):
        task = self.running.pop(0)
        task.path.mkdir(parents=True)
        update_manifest(task.path, status="finished")
        (task.path / "metrics.jsonl").write_text("{}\n")
        self.log.append(f"{task.path.name} ended")
        return [(task, "failed" if task.path.name == "c-1" else None)]

    def close(self):
        self.log.append("close")


def tasks(folder, *names, **options):
    return [
        Task(folder / name, PresetWork(launch.prepare(toy.PLUGIN, {"seed": int(name[-1]), **options})))
        for name in names
    ]


def run(folder, all_tasks, jobs=9):
    cluster, begun = OneAtATime(), []
    found = [(task.path.name, error) for task, error in run_on(cluster, folder, all_tasks, jobs, begun.append)]
    assert {task.path.name for task in begun} == {name for name, _ in found}
    return cluster.log, dict(found)


def test_of_cells_that_share_a_pretraining_one_goes_first(tmp_path):
    log, found = run(tmp_path, tasks(tmp_path, "a-0", "b-0", "c-1", "d-0"))
    assert log[:4] == ["open", "a-0", "c-1", "a-0 ended"]  # of each seed one
    assert log[4:6] == ["b-0", "d-0"] and log[-1] == "close"
    assert found == {"a-0": None, "b-0": None, "c-1": "failed", "d-0": None}


def test_cells_without_a_pretraining_go_at_once_as_many_as_may(tmp_path):
    log, _ = run(tmp_path, tasks(tmp_path, "a-0", "b-0", "c-0", **{"server.pretrain_steps": 0}), jobs=2)
    assert log == ["open", "a-0", "b-0", "a-0 ended", "c-0", "b-0 ended", "c-0 ended", "close"]
