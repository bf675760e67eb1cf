"""Files that survive a kill: atomic replacement of a file, and a lock on a directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlab.errors import RunError

LOCK_FILE = ".lock"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; a reader, or a kill, sees the old file or the new one and nothing between.

    Missing parent folders are created.

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


@contextmanager
def directory_lock(
    path: Path, *, wait: bool, name: str = LOCK_FILE, remedy: str = "wait for it, or stop it first"
) -> Iterator[None]:
    """Hold a directory against other processes; the kernel releases the lock when the process dies.

    Parameters
    ----------
    path
        The directory; created when it does not exist.
    wait
        Wait until another holder releases the lock, instead of raising.
    name
        Name of the lock file inside the directory; locks of different names do not exclude each other.
    remedy
        End of the error's sentence: what the user can do.

    Raises
    ------
    RunError
        When another process holds the lock and ``wait`` is false.
    OSError
        When the lock file cannot be created.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RunError(f"{path} is in use by another process; {remedy}") from None
        yield
