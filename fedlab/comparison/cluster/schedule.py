"""The order in which cells are given to a cluster: of those that share a pre-training, one goes first."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from pathlib import Path

from fedlab.comparison import cells
from fedlab.comparison.cluster.backend import Backend
from fedlab.comparison.workers import Begin, Ended, Task

POLL_SECONDS = 0.5
VISIBLE_SECONDS = 90.0  # for the results of another machine to be seen here: a network file system may cache names


def run_on(backend: Backend, folder: Path, tasks: Sequence[Task], jobs: int, begin: Begin) -> Ended:
    """Run tasks on a cluster, at most ``jobs`` at a time; yield each with its error, as they end.

    Parameters
    ----------
    folder
        The comparison's folder.
    """
    order, running, shown = PretrainingOrder(tasks), list[Task](), set[Task]()
    backend.open(folder)
    try:
        while order.waiting or running:
            while len(running) < jobs and (task := order.next(running)):
                backend.submit(task)
                running.append(task)
            for task in (one for one in running if one not in shown and (one.path / "manifest.json").exists()):
                shown.add(task)
                begin(task)
            for task, error in backend.ended(POLL_SECONDS):
                running.remove(task)
                if task not in shown:
                    begin(task)
                yield task, error or _missing(task)
    finally:  # of an interrupt, too
        backend.close()


class PretrainingOrder:
    """Tasks that wait; those that may share the pre-training of one that runs are held back until that is done.

    Attributes
    ----------
    waiting
        Tasks that were not returned yet.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.waiting, self._tasks = list(tasks), tasks
        self._done: set[Hashable] = {None}

    def next(self, running: Sequence[Task]) -> Task | None:
        """Return the next task that can begin, while others run; None where there is none now."""
        rest = (task for task in self._tasks if task.work.pretraining not in self._done)
        self._done |= {task.work.pretraining for task in rest if _is_pretrained(task)}
        busy = {task.work.pretraining for task in running} - self._done
        found = next((task for task in self.waiting if task.work.pretraining not in busy), None)
        if found:
            self.waiting.remove(found)
        return found


def _is_pretrained(task: Task) -> bool:
    """Return True for a run that has a round behind it, so that its pre-training is in the cache."""
    try:
        return (task.path / "metrics.jsonl").stat().st_size > 0
    except OSError:
        return False


def _missing(task: Task) -> str | None:
    """Return an error when a cell that ended well is not to be seen here, even after a while."""
    end = time.monotonic() + VISIBLE_SECONDS
    while not cells.finished(task.path):
        if time.monotonic() > end:
            return (
                f"the cell ended, but {task.path} holds no finished run here; the machines do not share this folder, "
                "or its file system is slow: the same command looks again"
            )
        time.sleep(POLL_SECONDS)
    return None
