"""Cells as tasks of a Ray cluster, through a driver process (``ray_driver.py``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

from fedlab.comparison.cluster import backend as common
from fedlab.comparison.cluster.cell import RemoteCell
from fedlab.comparison.workers import Task
from fedlab.engines import ray_cluster
from fedlab.environment import search_paths
from fedlab.errors import ConfigError, suggest
from fedlab.files import no_follow

DETAILS = ("cpus", "gpus")  # of each cell
LOG = "ray.log"
DRIVER = "fedlab.comparison.cluster.ray_driver"


class RayBackend:
    """A Ray cluster.

    Parameters
    ----------
    details
        ``ADDRESS`` of the head, and ``cpus=N,gpus=N`` of each cell. Without an address the cluster of ``RAY_ADDRESS``,
        or that of which this machine is a node.

    Raises
    ------
    ConfigError
        When they cannot be read.
    """

    def __init__(self, details: str) -> None:
        address, self.values = common.parse_details(details)
        self.address = address or os.environ.get("RAY_ADDRESS", "") or ray_cluster.AUTO
        unknown = next((key for key in self.values if key not in DETAILS), None)
        if unknown:
            raise ConfigError(f"--on ray has no {unknown!r}; {suggest(unknown, DETAILS)}")
        for key in DETAILS:
            common.number(key, self.values, 0)
        self._tasks: dict[str, Task] = {}
        self._answers: SimpleQueue[str] = SimpleQueue()
        self._driver: subprocess.Popen[str] | None = None
        self._why_lost = ""

    @property
    def title(self) -> str:
        """Name for people."""
        return "Ray" if self.address == ray_cluster.AUTO else f"Ray at {self.address}"

    def reach(self) -> None:
        """Look at the cluster, once.

        Raises
        ------
        ConfigError
            When it does not answer, with a sentence.
        """
        self._cluster = ray_cluster.probe(self.address)

    def check(self, tasks: Sequence[Task]) -> int:
        """Return how many of some tasks may be queued at a time.

        That is all of them, except where clients reserve places of the same cluster: then as many as it has places, so
        that each has one. Such a task reserves nothing itself, or it could hold what its own clients wait for.

        Raises
        ------
        ConfigError
            When a task fits on none of the nodes, or is to reserve what its clients wait for.
        """
        for cpus, gpus in {self._resources(task) for task in tasks}:
            if not self._cluster.slots(cpus, gpus):
                raise ConfigError(
                    f"a cell takes {cpus:g} CPUs and {gpus:g} GPUs, and no node of the Ray cluster has as many "
                    f"({self._cluster.describe()}); set threads, or --on ray:...,cpus=N,gpus=N"
                )
        places = [self._cluster.slots(*reserved) for task in tasks if any(reserved := task.work.reserved)]
        return max(1, min([len(tasks), *places]))

    def _resources(self, task: Task) -> tuple[float, float]:
        """Return the CPUs and GPUs of a task: its threads, and a GPU where it may take one and there are any."""
        device = task.work.device.partition(":")[0]
        wanted = 1 if device == "cuda" or (device == "auto" and self._cluster.gpus > 0) else 0
        cpus, gpus = task.work.reserved
        return self._amount("cpus", task.work.threads, cpus), self._amount("gpus", wanted, gpus)

    def _amount(self, key: str, usual: float, reserved: float) -> float:
        """Return what a task reserves of a resource, of which each of its clients may reserve some."""
        found = common.number(key, self.values, 0 if reserved else usual)
        if found and reserved:
            raise ConfigError(
                f"--on ray:...,{key}={found:g}: a cell would hold {key} that its own clients wait for, each of which "
                f"reserves {reserved:g} on the cluster; leave out {key}"
            )
        return found

    def open(self, folder: Path) -> None:
        """Start the driver; what it says goes to a log in the comparison's folder."""
        self._folder = folder
        command = [sys.executable, "-P", "-W", "ignore::FutureWarning", "-m", DRIVER, self.address]
        paths, given = search_paths(), common.cell_settings()
        with open(folder / LOG, "a", opener=no_follow) as log:
            self._driver = subprocess.Popen(
                [*command, ",".join(paths), ",".join(given), str(common.STOP_SECONDS)],
                env={**os.environ, **paths, **given, **ray_cluster.driver_environment()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C in the terminal is for us alone
            )
        self._listener = threading.Thread(target=self._listen, args=(_pipe(self._driver.stdout),), daemon=True)
        self._listener.start()

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            self._answers.put(line)
        self._answers.put("")

    def submit(self, task: Task) -> None:
        """Queue a task; Ray runs it where its CPUs are free."""
        self._tasks[str(task.path)] = task
        cpus, gpus = self._resources(task)
        cell = asdict(RemoteCell.of(task, self._folder))
        with suppress(BrokenPipeError):  # its end is seen in `ended`
            stream = _pipe(self._process.stdin)
            stream.write(json.dumps({"cell": cell, "cpus": cpus, "gpus": gpus}) + "\n")
            stream.flush()

    def ended(self, seconds: float) -> list[tuple[Task, str | None]]:
        """Return tasks that ended, each with its error; all of them when the cluster has gone."""
        try:
            line = self._answers.get(timeout=seconds)
        except Empty:
            return []
        if not line:
            error, lost = self._lost(), list(self._tasks.values())
            self._tasks.clear()
            return [(task, error) for task in lost]
        answer = json.loads(line)
        return [(self._tasks.pop(answer["path"]), answer["error"])]

    def _lost(self) -> str:
        """Return why the driver has ended; the cluster is asked once."""
        self._answers.put("")  # what is submitted later is lost, too
        self._why_lost = self._why_lost or self._look_for_reason(self._process.wait())
        return self._why_lost

    def _look_for_reason(self, code: int) -> str:
        log = self._folder / LOG
        if ray_cluster.is_gone(self.address):
            return f"{ray_cluster.gone(self.address)}; see {log}"
        last = ([line for line in log.read_text(errors="replace").splitlines() if line.strip()] or [""])[-1]
        return f"the connection to {self.title} ended with exit status {code}: {last.strip()}; see {log}"

    def close(self) -> None:
        """Let the driver interrupt what still runs, and end it."""
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(2 * common.STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        _pipe(self._process.stdout).close()

    @property
    def _process(self) -> subprocess.Popen[str]:
        assert self._driver is not None
        return self._driver


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
