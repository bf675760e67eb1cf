"""The runs in a folder, each in one line: what it is, how far it came, and the figure that it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedlab.errors import FedlabError, RunError
from fedlab.files import directory_lock
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result

RUNNING = "running"


@dataclass(frozen=True)
class RunSummary:
    """One run; what is not known is empty.

    Attributes
    ----------
    name
        Name of its directory.
    system
        Strategy and workload.
    status
        created, running, finished, failed, interrupted; killed: it says running, and no process writes it; damaged.
    rounds
        Rounds done, and planned.
    figure
        Mean of the metric that it is judged by, after the last round.
    created
        Time of its start.
    """

    name: str
    system: str
    status: str
    rounds: str
    figure: str
    created: str


def list_runs(folder: Path) -> list[RunSummary]:
    """Return the runs whose directories are in a folder, oldest first.

    Raises
    ------
    RunError
        When the folder does not exist, or has no run.
    """
    paths = sorted(path.parent for path in folder.glob("*/manifest.json"))
    if not paths:
        what = "there is no folder" if not folder.is_dir() else "there is no run in"
        raise RunError(f"{what} {folder}; `fedlab run` makes runs in runs/, and --runs says where")
    return sorted(map(summarize, paths), key=lambda run: (run.created, run.name))


def summarize(path: Path) -> RunSummary:
    """Return the summary of a run directory, also of a damaged one."""
    try:
        run = RunDirectory.open(path)
        manifest = run.manifest()
        result = Result.read(path) if run.rounds() else None
    except FedlabError:
        return RunSummary(path.name, "", "damaged", "", "", "")
    status = str(manifest.get("status", ""))
    done = result.rounds[-1]["round"] if result else 0
    return RunSummary(
        path.name,
        f"{manifest.get('strategy', '')} on {manifest.get('workload', '')}",
        "killed" if status == RUNNING and not _is_written(path) else status,
        f"{done}/{manifest['rounds']}" if "rounds" in manifest else str(done),
        result.figures(most=1) if result else "",
        str(manifest.get("created", "")),
    )


def _is_written(path: Path) -> bool:
    """Return True if a process writes a run."""
    try:
        with directory_lock(path, wait=False):
            return False
    except (RunError, OSError):
        return True
