"""Cells as jobs of Slurm, through submitit.

A job that is still queued, or runs, when the command is killed stays: the same command finds it again by ``jobs.json``.
A cell whose time is over is queued again by its own job and goes on from its last round.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedlab.comparison.cluster import backend as common
from fedlab.comparison.cluster.cell import RemoteCell
from fedlab.comparison.workers import Task
from fedlab.environment import search_paths, with_environment
from fedlab.errors import ConfigError, RunError
from fedlab.files import write_atomically

FOLDER, JOBS = "slurm", "jobs.json"
DEFAULT_TIME = "4:00:00"
REQUEUES = 10  # of a cell whose time is over
QUEUE_SECONDS = 10.0  # between two looks at the queue; results are files, which are looked for more often
COMMAND_SECONDS = 60.0
TIME = re.compile(r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<min>\d+))?(?::\d+)?|(?P<plain>\d+(?::\d+){0,2}))")


class SlurmBackend:
    """Slurm, as the commands ``sbatch``, ``squeue`` and ``scancel`` of this machine reach it.

    Parameters
    ----------
    details
        Options of ``sbatch`` as ``partition=gpu,time=2:00:00,gpus=1``; an option without a value is written
        ``exclusive=true``.

    Raises
    ------
    ConfigError
        When they cannot be read.
    """

    title = "Slurm"

    def __init__(self, details: str) -> None:
        head, values = common.parse_details(details)
        if head:
            raise ConfigError(f"--on slurm:{head} names no value; write options of sbatch: --on slurm:partition={head}")
        self.values = {"time": DEFAULT_TIME, **{key.replace("-", "_"): value for key, value in values.items()}}
        self.minutes = parse_minutes(self.values.pop("time"))
        self._jobs: dict[str, tuple[Task, Any]] = {}
        self._looked, self._missing = 0.0, set[str]()
        self._later: list[Task] = []  # refused while others were queued: there may be a limit of jobs
        self._room = False  # a job has ended since

    def reach(self) -> None:
        """Refuse a machine that cannot reach Slurm.

        Raises
        ------
        ConfigError
            When submitit or a command of Slurm is missing.
        """
        if find_spec("submitit") is None:
            raise ConfigError("--on slurm needs the package submitit: pip install 'fedlab-adapt[slurm]'")
        missing = [name for name in ("sbatch", "srun", "squeue", "scancel") if not shutil.which(name)]
        if missing:
            raise ConfigError(
                f"--on slurm needs commands of Slurm that are not on the PATH: {', '.join(missing)}; run this on a "
                "login node of the cluster"
            )

    def check(self, tasks: Sequence[Task]) -> int:
        """Return the number of tasks: Slurm queues them all."""
        self._threads = max(task.work.threads for task in tasks)
        return len(tasks)

    def open(self, folder: Path) -> None:
        """Prepare the executor, and read which jobs there are from before."""
        import submitit

        self._folder = folder
        options: dict[str, object] = {key: True if value == "true" else value for key, value in self.values.items()}
        if not {"cpus_per_task", "cpus_per_gpu"} & options.keys():
            options["cpus_per_task"] = self._threads
        (folder / FOLDER).mkdir(mode=0o700, exist_ok=True)  # results are pickles, which run code when they are read
        self._executor = submitit.SlurmExecutor(folder / FOLDER, max_num_timeout=REQUEUES)
        # Everybody may read the script of a job. So it names no value: sbatch hands the environment of its process on.
        self._variables = {**search_paths(), **common.cell_settings(), "SBATCH_EXPORT": "ALL"}
        self._executor.update_parameters(
            job_name=f"fedlab-{folder.name}",
            time=self.minutes,
            setup=["export PYTHONSAFEPATH=1"],  # a user's random.py is not the standard library's
            additional_parameters=options,
        )
        known = _read_jobs(folder / FOLDER / JOBS)
        alive = _queued(list(known.values())) or set()
        self._before = {run: job for run, job in known.items() if job in alive}

    def submit(self, task: Task) -> None:
        """Queue a task, or find its job of an earlier command.

        Raises
        ------
        RunError
            When Slurm refuses it although none of the others is queued, with what sbatch said.
        """
        run = task.path.name
        try:
            if run in self._before:
                job = self._executor.job_class(self._executor.folder, self._before.pop(run))
            else:
                job = self._sbatch(RemoteCell.of(task, self._folder))
        except RunError:
            if not self._jobs:
                raise
            self._later.append(task)
            return
        self._jobs[run] = (task, job)
        self._write_jobs()

    def _sbatch(self, cell: RemoteCell) -> Any:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            with with_environment(self._variables), redirect_stderr(io.StringIO()):  # the sentence below has it
                return self._executor.submit(cell)
        except (FailedJobError, FailedSubmissionError) as refused:
            said = " ".join(line.strip() for line in str(refused).splitlines() if line.strip())
            raise RunError(
                f"Slurm refuses the job of a cell: {said or 'sbatch gave no reason'}. Change --on slurm:..., or ask "
                "those who run the cluster; what has finished is kept"
            ) from None

    def ended(self, seconds: float) -> list[tuple[Task, str | None]]:
        """Return tasks whose jobs ended within some seconds, each with its error."""
        end = time.monotonic() + seconds
        self._submit_later()
        while True:
            found = [run for run, (_, job) in self._jobs.items() if _result_file(job).exists()] or self._vanished()
            if found or time.monotonic() > end:
                ended = [(self._jobs[run][0], self._outcome(self._jobs[run][1])) for run in found]
                self._jobs = {run: job for run, job in self._jobs.items() if run not in found}
                if found:
                    self._write_jobs()
                    self._room = True
                return ended
            time.sleep(0.2)

    def _submit_later(self) -> None:
        """Submit again what was refused, once a job has ended; not before its end has been told."""
        while self._room and self._later:
            waiting = len(self._later)
            self.submit(self._later.pop(0))
            self._room = len(self._later) < waiting
        self._room = False

    def _vanished(self) -> list[str]:
        """Return the cells whose jobs have left the queue, twice in a row, without a result."""
        if not self._jobs or time.monotonic() - self._looked < QUEUE_SECONDS:
            return []
        self._looked, before = time.monotonic(), self._missing
        queued = _queued([str(job.job_id) for _, job in self._jobs.values()])
        if queued is None:
            return []
        self._missing = {run for run, (_, job) in self._jobs.items() if str(job.job_id) not in queued}
        return [run for run in self._jobs if run in self._missing & before]

    def _outcome(self, job: Any) -> str | None:
        """Return the error of a job that ended."""
        log = job.paths.stderr
        if not _result_file(job).exists():
            state = _say("sacct", "--noheader", "--allocations", "--format=State%30", f"--jobs={job.job_id}").split()
            why = f"ended as {state[0]}" if state else "left the queue without a result"
            return f"Slurm job {job.job_id} {why}; what it said is in {log}. The same command goes on with the cell"
        outcome, result = job._get_outcome_and_result()
        if outcome == "success":
            error: str | None = result
            return error
        last = (str(result).strip().splitlines() or ["no reason"])[-1]
        return f"Slurm job {job.job_id} failed: {last}; what it said is in {log}"

    def _write_jobs(self) -> None:
        jobs = {run: str(job.job_id) for run, (_, job) in self._jobs.items()}
        write_atomically(self._folder / FOLDER / JOBS, json.dumps({**self._before, **jobs}, indent=2).encode() + b"\n")

    def close(self) -> None:
        """Cancel what is queued or runs for this command, and wait until it has noted where it stands."""
        ids = [str(job.job_id) for _, job in self._jobs.values()]
        if not ids:
            return
        _say("scancel", *ids)
        end = time.monotonic() + common.STOP_SECONDS
        while _queued(ids) and time.monotonic() < end:
            time.sleep(0.5)
        self._jobs.clear()
        self._write_jobs()


def parse_minutes(text: str) -> int:
    """Return Slurm's time (``90``, ``2:00:00``, ``1-12``) in minutes, rounded up.

    >>> parse_minutes("90"), parse_minutes("2:00:00"), parse_minutes("1-12"), parse_minutes("0:30")
    (90, 120, 2160, 1)

    Raises
    ------
    ConfigError
        For anything else, and for no time at all.
    """
    match, minutes = TIME.fullmatch(text.strip()), 0.0
    if match and match["days"]:
        minutes = 1440 * int(match["days"]) + 60 * int(match["hours"]) + int(match["min"] or 0)
    elif match:
        parts = [int(part) for part in match["plain"].split(":")]
        hours, number, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
        minutes = 60 * hours + number + seconds / 60
    if minutes <= 0:
        raise ConfigError(
            f"--on slurm: time is {text!r}; write minutes, hours:minutes:seconds or days-hours, as in time=2:00:00"
        )
    return -int(-minutes // 1)


def _result_file(job: Any) -> Path:
    return Path(job.paths.result_pickle)


def _read_jobs(path: Path) -> Mapping[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _queued(ids: Sequence[str]) -> set[str] | None:
    """Return those of some jobs that are queued or run; None when Slurm does not answer."""
    if not ids:
        return set()
    said = _say("squeue", "--noheader", "--me", "--format=%i", default=None)
    return None if said is None else set(ids) & set(said.split())


def _say(*command: str, default: Any = "") -> Any:
    """Return what a command of Slurm prints; the default when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return default
    return done.stdout if done.returncode == 0 else default
