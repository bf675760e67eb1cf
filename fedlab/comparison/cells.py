"""Runs that tables are made of: each is done once, found again by its name, and resumed if it was killed."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedlab import files, launch
from fedlab.config.resolve import with_options
from fedlab.config.schema import Config
from fedlab.errors import FedlabError, RunError, os_error_sentence
from fedlab.exits import exits_as_errors
from fedlab.runs.client_state import copy_states
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result

TRACEBACK = "traceback.txt"


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint that a run goes on from: ``run``'s of ``round``, which it must have kept (``checkpoint.keep``)."""

    run: Path
    round: int


def run_or_resume(path: Path, config: Callable[[], Config], begun: CheckpointRef | None = None) -> Result:
    """Run in the directory ``path`` (``<name>-<seed>``); a finished run is read, and an interrupted one is resumed.

    Parameters
    ----------
    config
        Its checked configuration, asked for only where it has not begun.
    """
    if not (path / "manifest.json").exists():
        shutil.rmtree(path, ignore_errors=True)  # what a kill left before the run could begin
        directory = RunDirectory.create(path.parent, with_options(config(), {"name": path.name.rpartition("-")[0]}))
        if begun:
            for record in RunDirectory.open(begun.run).rounds()[: begun.round + 1]:
                directory.log_round(record)
            directory.checkpoints.copy(begun.run, begun.round)
            copy_states(begun.run, directory.path, begun.round)
    return launch.resume(path)


def run_cell(path: Path, work: Callable[[Path], object]) -> str | None:
    """Run a cell in the directory ``path`` and say why it failed; None when it did not. An interrupt is passed on.

    What is no error of ours is a bug: its traceback stays in the run directory.
    """
    try:
        with exits_as_errors():
            work(path)
    except FedlabError as error:
        return str(error)
    except OSError as error:
        return os_error_sentence(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}; {_keep_traceback(path, traceback.format_exc())}"
    return None


def _keep_traceback(path: Path, text: str) -> str:
    """Write a traceback into the run directory; return where it is, or its last call where nothing can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path / TRACEBACK, text.encode())
    except OSError:
        return f"its traceback could not be written, and ends with {text.strip().splitlines()[-3:-1]}"
    return f"the traceback is in {path / TRACEBACK}"


def finished(path: Path) -> bool:
    """Return True if a finished run is in a directory."""
    return (path / "manifest.json").exists() and RunDirectory(path).manifest().get("status") == "finished"


def device_of(path: Path) -> str:
    """Return the device of a run, with the name of the GPU or the processor; "" where it did not begin."""
    manifest = RunDirectory(path).manifest()
    facts, device = manifest.get("numerics", {}), str(manifest.get("device", ""))
    names = ", ".join(dict.fromkeys(facts.get("gpus") or [facts.get("processor", "")]))
    return f"{device} ({names})" if device and names else device


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def directory_lock(folder: Path) -> Iterator[None]:
    """Lock a folder against a second comparison; the kernel releases it when the process dies.

    Raises
    ------
    RunError
        When the folder cannot be made or another comparison uses it.
    """
    remedy = "another comparison may run there: wait for it, or choose another folder (--out)"
    with ExitStack() as stack:
        try:
            stack.enter_context(files.directory_lock(folder, wait=False, remedy=remedy))
        except OSError as error:
            raise RunError(f"no comparison can be made in {folder} (--out): {os_error_sentence(error)}") from None
        yield
