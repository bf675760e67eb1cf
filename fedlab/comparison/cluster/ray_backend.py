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
from fedlab.errors import ConfigError, suggest

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
        self._has_gpus = False

    @property
    def title(self) -> str:
        """Name for people."""
        return "Ray" if self.address == ray_cluster.AUTO else f"Ray at {self.address}"

    def check(self, tasks: Sequence[Task]) -> None:
        """Look at the cluster, and refuse tasks that fit on none of its nodes.

        Raises
        ------
        ConfigError
            With a sentence.
        """
        cluster = ray_cluster.probe(self.address)
        self._has_gpus = cluster.gpus > 0
        for cpus, gpus in {self._resources(task) for task in tasks}:
            if not cluster.slots(cpus, gpus):
                raise ConfigError(
                    f"a cell takes {cpus:g} CPUs and {gpus:g} GPUs, and no node of the Ray cluster has as many "
                    f"({cluster.describe()}); set threads, or --on ray:...,cpus=N,gpus=N"
                )

    def _resources(self, task: Task) -> tuple[float, float]:
        """Return the CPUs and GPUs of a task: its threads, and a GPU where it may take one and there are any."""
        device = task.work.device.partition(":")[0]
        wanted = 1 if device == "cuda" or (device == "auto" and self._has_gpus) else 0
        return common.number("cpus", self.values, task.work.threads), common.number("gpus", self.values, wanted)

    def open(self, folder: Path) -> None:
        """Start the driver; what it says goes to a log in the comparison's folder."""
        self._folder = folder
        command = [sys.executable, "-P", "-W", "ignore::FutureWarning", "-m", DRIVER, self.address]
        variables = common.environment()
        with (folder / LOG).open("a") as log:
            self._driver = subprocess.Popen(
                [*command, json.dumps(variables), str(common.STOP_SECONDS)],
                env={**os.environ, **variables, **ray_cluster.driver_environment()},
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
        """Return why the driver has ended."""
        self._answers.put("")  # what is submitted later is lost, too
        code = self._process.wait()
        log = self._folder / LOG
        if ray_cluster.is_gone(self.address):
            return f"the Ray cluster at {self.address} is gone: its head does not answer any more; see {log}"
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
