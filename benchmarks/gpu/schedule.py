"""Parts of the benchmark within a time: tasks in processes of their own, each with its own end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.rows import Row

OVER = "not begun: the time of the part was over"
Report = Callable[[list[Row]], None]


@dataclass(frozen=True)
class Task:
    """A function that yields rows, by its import path, and its options."""

    part: str
    what: str
    function: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tally: bool = False

    def failed(self, error: str) -> Row:
        """Return the row of a task without an end."""
        return Row(self.part, self.what, error=error, tally=self.tally)


class Worker:
    """A process for tasks, started when the first one comes, and anew after one that ended it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = {**os.environ, **environment}
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115

    def do(self, task: Task, deadline: float, report: Report) -> None:
        """Do a task and report its rows as they come; end it at ``deadline``, in seconds of the monotonic clock."""
        process = self._started()
        assert process.stdin and process.stdout
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
        timer.start()
        try:
            with suppress(BrokenPipeError):
                print(
                    json.dumps({"function": task.function, "options": dict(task.options)}),
                    file=process.stdin,
                    flush=True,
                )
            while line := process.stdout.readline():
                answer = json.loads(line)
                if "end" in answer:
                    if answer["end"]:
                        report([task.failed(answer["end"])])
                    return
                report([Row(**answer["row"])])
        finally:
            timer.cancel()
        process.communicate()
        self._process = None
        late = time.monotonic() >= deadline
        report([task.failed("stopped at the end of its time" if late else f"its process ended: {self._last_words()}")])

    def close(self) -> None:
        """End the process."""
        if self._process:
            try:
                self._process.communicate(timeout=10)  # its input ends, and so does it
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
        self._log.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=self.environment,
            )
        return self._process

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read()[-4000:].splitlines() if line.strip()]
        return lines[-1][:2000] if lines else "it said nothing"


def perform_all(
    tasks: Sequence[Task], seconds: float, processes: int, report: Report, environment: Mapping[str, str] | None = None
) -> None:
    """Do tasks in several processes at once, within a number of seconds; one row names those not begun by then."""
    deadline, lock, waiting = time.monotonic() + seconds, threading.Lock(), iter(tasks)
    late = list[Task]()

    def told(rows: Iterable[Row]) -> None:
        with lock:
            report(list(rows))

    def serve() -> None:
        worker = Worker(environment or {})
        try:
            while True:
                with lock:
                    task = next(waiting, None)
                if task is None:
                    return
                if time.monotonic() >= deadline:
                    late.append(task)
                else:
                    worker.do(task, deadline, told)
        finally:
            worker.close()

    threads = [threading.Thread(target=serve) for _ in range(min(processes, len(tasks)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if late:
        report([not_begun(late)])


def not_begun(tasks: Sequence[Task]) -> Row:
    """Return one row for tasks that were not begun: a table of eighty such rows hides the others."""
    names = ", ".join(task.what for task in tasks)
    return Row(tasks[0].part, OVER, float(len(tasks)), note=names if len(tasks) < 10 else f"{names[:200]} ...")
