"""The driver of cells on a Ray cluster, a process of its own: Ray ends the process whose cluster has gone.

``python -m fedlab.comparison.cluster.ray_driver ADDRESS PATHS SETTINGS SECONDS`` reads one JSON request per line,
prints one JSON answer per cell that ended, and when stdin closes cancels the rest, which it gives so many seconds. It
imports nothing but Ray: cells run elsewhere.

PATHS and SETTINGS are names of variables, separated by commas, that cells get with the values of this process. Ray
writes the environment that it is given for a job into command lines and logs. So only search paths are in it; a cell
gets the settings, which may be secrets, as an argument.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from queue import Empty, SimpleQueue
from typing import Any

RETRIES = 3  # of a cell whose machine or process is lost: it goes on from its last round
POLL_SECONDS = 0.2
CLOSED = ""  # a line that no request is


def run_cell(fields: dict[str, str], settings: dict[str, str]) -> str | None:
    """Run a cell, with these environment variables, on the machine that Ray has chosen; return its error."""
    os.environ.update(settings)
    from fedlab.comparison.cluster.cell import RemoteCell

    return RemoteCell(**fields)()


def main() -> None:
    """Run cells until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lines: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(CLOSED)

    threading.Thread(target=listen, daemon=True).start()
    import ray

    ray.init(
        address=sys.argv[1],
        runtime_env={"env_vars": _variables(sys.argv[2])},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    remote, settings = ray.remote(run_cell), _variables(sys.argv[3])
    running: dict[Any, str] = {}
    while True:
        for line in _new(lines):
            if line == CLOSED:
                _cancel(ray, list(running))
                return
            request = json.loads(line)
            options = {"num_cpus": request["cpus"], "num_gpus": request["gpus"], "max_retries": RETRIES}
            running[remote.options(**options).remote(request["cell"], settings)] = request["cell"]["path"]
        if not running:
            time.sleep(POLL_SECONDS)
            continue
        for ended in ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)[0]:
            answers.write(json.dumps({"path": running.pop(ended), "error": _error(ray, ended)}) + "\n")
            answers.flush()


def _variables(names: str) -> dict[str, str]:
    return {name: os.environ[name] for name in names.split(",") if name}


def _new(lines: SimpleQueue[str]) -> list[str]:
    found: list[str] = []
    try:
        while True:
            found.append(lines.get_nowait())
    except Empty:
        return found


def _error(ray: Any, ended: Any) -> str | None:
    """Return the error of a cell, or why Ray could not run it."""
    try:
        error: str | None = ray.get(ended)
    except ray.exceptions.OutOfMemoryError:
        return "its machine has too little memory for so many cells at a time: ask for fewer --jobs, or --on ray:cpus=N"
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError):
        return f"the machines that ran it were lost {RETRIES + 1} times; the same command goes on with it"
    except ray.exceptions.RayTaskError as failed:
        return str(failed).strip().splitlines()[-1]
    except ray.exceptions.RayError as failed:
        return f"Ray could not run it: {str(failed).strip().splitlines()[0]}"
    return error


def _cancel(ray: Any, running: list[Any]) -> None:
    """Interrupt the cells that run, as Ctrl-C does, so that each notes where it stands."""
    for one in running:
        ray.cancel(one)
    if running:
        ray.wait(running, num_returns=len(running), timeout=float(sys.argv[4]))


if __name__ == "__main__":
    main()
