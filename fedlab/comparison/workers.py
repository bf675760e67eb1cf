"""Cells one after another in this process, or several at once in processes of their own.

A process of its own (``worker.py``) runs cell after cell, so torch is imported once for all of them. It ends with us,
however we end. One that dies (for want of memory, say) costs its cell and nobody else's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import IO

from fedlab.comparison import cells
from fedlab.comparison.work import Work, write_work
from fedlab.files import no_follow
from fedlab.plugins import python_path

STOP_TIMEOUT = 20.0  # seconds that an interrupted cell has to note where it stands


@dataclass(frozen=True, eq=False)
class Task:
    """A run to be done, in a directory of this path."""

    path: Path
    work: Work


Begin = Callable[[Task], None]
Ended = Generator[tuple[Task, str | None]]  # each task with what went wrong, as they end


def run_sequential(tasks: Sequence[Task], begin: Begin) -> Ended:
    """Run tasks one after another, in this process."""
    for task in tasks:
        begin(task)
        yield task, cells.run_cell(task.path, task.work)


def run_parallel(tasks: Sequence[Task], jobs: int, gpus: Sequence[str], log: Path, begin: Begin) -> Ended:
    """Run ``jobs`` tasks at a time, each in its own process and on one of the ``gpus`` in turn, if there are any."""
    workers = [Worker(log, gpus[slot % len(gpus)] if gpus else None) for slot in range(jobs)]
    free: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def do(task: Task) -> str | None:
        worker = free.get()
        try:
            begin(task)
            return worker.do(task)
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(jobs)
    try:
        futures = {threads.submit(do, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:  # of an interrupt, too
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        threads.shutdown()
        for worker in workers:
            worker.close()


class Worker:
    """One process; it is started with its first task, and again if it died."""

    def __init__(self, log: Path, gpu: str | None) -> None:
        self.log, self.gpu = log, gpu
        self.process: subprocess.Popen[str] | None = None
        self.closed, self.lock = False, Lock()  # nothing is started once it is closed

    def do(self, task: Task) -> str | None:
        """Run a task; return its error, or None."""
        with self.lock:
            if self.closed:
                return "not begun"
            process = self._running()
        with suppress(BrokenPipeError):
            _pipe(process.stdin).write(json.dumps({"path": str(task.path), "work": write_work(task.work)}) + "\n")
            _pipe(process.stdin).flush()
        answer = _pipe(process.stdout).readline()
        if answer:
            error: str | None = json.loads(answer)["error"]
            return error
        code = process.wait()
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return (
            f"its process ended with {why}; if it was killed for want of memory, ask for fewer --jobs. "
            f"What it said is in {self.log}"
        )

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            self.close()
            variables = {**os.environ, "PYTHONPATH": python_path()}
            if self.gpu is not None:
                variables["CUDA_VISIBLE_DEVICES"] = self.gpu
            with open(self.log, "a", opener=no_follow) as errors:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "fedlab.comparison.worker"],
                    env=variables,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    start_new_session=True,  # Ctrl-C in the terminal is for us alone: we stop the rest in order
                )
        return self.process

    def terminate(self) -> None:
        """Ask the process to end; one with a cell first notes its status."""
        with self.lock:
            self.closed = True
        if self.process and self.process.poll() is None:
            self.process.terminate()

    def wait(self) -> None:
        """Wait for the end of the process; kill it after ``STOP_TIMEOUT`` seconds."""
        if self.process:
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def close(self) -> None:
        """Close its pipes."""
        for pipe in (self.process.stdin, self.process.stdout) if self.process else ():
            with suppress(BrokenPipeError):
                _pipe(pipe).close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
