"""A cell on its way to another machine, and what that machine does with it."""

from __future__ import annotations

import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab.comparison import cells
from fedlab.comparison.work import read_work, write_work
from fedlab.comparison.workers import Task
from fedlab.environment import versions_here
from fedlab.files import write_atomically

FOLDER_ID = ".folder-id"
REQUEUED = threading.Event()  # of this process: its job is in the queue again, so that it has no result


@dataclass(frozen=True)
class RemoteCell:
    """A cell as plain text, called on the machine that runs it.

    Attributes
    ----------
    path
        Its run directory.
    work
        What it does, as text.
    folder, folder_id
        The comparison's folder, and what is written in it: another folder of that path is not meant.
    version
        Versions of fedlab and Python that the comparison was planned with.
    """

    path: str
    work: str
    folder: str
    folder_id: str
    version: str

    @classmethod
    def of(cls, task: Task, folder: Path) -> RemoteCell:
        """Return a task of a comparison as it travels."""
        return cls(str(task.path), write_work(task.work), str(folder), folder_id(folder), versions_here())

    def __call__(self) -> str | None:
        """Run the cell here, or go on with it; return its error."""
        from fedlab.errors import FedlabError

        if reason := self._unfit():
            return f"on {socket.gethostname()}: {reason}"
        try:
            work = read_work(self.work)
        except FedlabError as refused:  # a plug-in that this machine lacks
            return f"on {socket.gethostname()}: {refused}"
        error = cells.run_cell(Path(self.path), work)
        if REQUEUED.is_set():  # submitit's own SystemExit may have come to torch while it wrote a file
            raise SystemExit(1)
        return error

    def checkpoint(self, *_: Any) -> Any:
        """Return what Slurm is to queue when the time is over: the same cell, which goes on from its last round."""
        from submitit.helpers import DelayedSubmission

        REQUEUED.set()
        return DelayedSubmission(self)

    def _unfit(self) -> str:
        """Return why this machine cannot run the cell; "" if it can."""
        if versions_here() != self.version:
            return f"this machine has {versions_here()}, and the comparison was planned with {self.version}"
        try:
            if (Path(self.folder) / FOLDER_ID).read_text(encoding="utf-8") == self.folder_id:
                return ""
        except OSError:
            pass
        return (
            f"{self.folder} is not the folder of this comparison here; put it where all machines see the same files "
            "under the same path (--out)"
        )


def folder_id(folder: Path) -> str:
    """Return the text by which a comparison's folder is known, written once."""
    file = folder / FOLDER_ID
    if not file.exists():
        write_atomically(file, secrets.token_hex(8).encode())
    return file.read_text(encoding="utf-8")
