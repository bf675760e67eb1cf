"""Files that survive a kill: atomic writes, locks, logs of JSON lines, following a log that another process writes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fedlab.errors import ConfigError, FedlabWarning, RunError

LOCK_FILE = ".lock"
MAX_LOG_BYTES = 50_000_000  # of a log of Flower's; what came before it is kept once


def ensure_home() -> Path:
    """Return the user's home folder; where there is none, make a temporary one and name it in ``$HOME``.

    A user id that only a container knows has neither ``$HOME`` nor an entry in the table of users, and then Flower,
    Ray and Matplotlib fail as well.

    Warns
    -----
    FedlabWarning
        When the home folder is a temporary one.
    """
    try:
        return Path.home()
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"fedlab-home-{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if folder.stat().st_uid != os.getuid():
            folder = Path(tempfile.mkdtemp(prefix="fedlab-home-"))
        os.environ["HOME"] = str(folder)
        warnings.warn(
            f"user {os.getuid()} has no home folder; {folder} takes its place, with what is cached. To keep that, set "
            "HOME to a folder that can be written",
            FedlabWarning,
            stacklevel=2,
        )
        return folder


def user_cache() -> Path:
    """Return the user's cache folder, which need not exist: ``$XDG_CACHE_HOME``, or ``.cache`` in the home folder."""
    given = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else ensure_home() / ".cache"


def expand_user(path: Path | str) -> Path:
    """Return a path with ``~`` and ``~USER`` expanded.

    Raises
    ------
    ConfigError
        When there is no such user.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0].removeprefix("~")
        raise ConfigError(f"{path}: this machine has no user {user!r}; write the path in full, or ./{path}")
    return Path(expanded)


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Name the file in an error of the operating system: that of a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content replaces ``path`` at the end; a reader, or a kill, sees the old file or the new one.

    Missing parent folders are created. When the body raises, the old file stays, and nothing else is left.

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with name_file(path):
            with open(temporary, "wb", opener=no_follow) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()  # half a file would take the space that is wanting
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, as :func:`replacing` does.

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    with replacing(path) as stream:
        stream.write(content)


def complete_lines(path: Path) -> list[str]:
    """Return the complete lines of a text file that are not empty; none where there is no file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [line for line in text[: text.rfind("\n") + 1].split("\n") if line]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete JSON lines of a log; a last line that a kill has torn is left out.

    Raises
    ------
    RunError
        For a line that is damaged otherwise.
    """
    found: list[dict[str, Any]] = []
    for number, line in enumerate(complete_lines(path), 1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise RunError(f"line {number} of {path} is damaged: {line[:40]!r}; delete that line") from None
    return found


def truncate_torn_line(path: Path) -> None:
    """Cut off a last line that a kill has torn, so that the next line begins where it should."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        write_atomically(path, content[: content.rfind(b"\n") + 1])


def private_no_follow(path: str, flags: int) -> int:
    """Open a file as :func:`no_follow` does; a new one can be read by its owner only."""
    return no_follow(path, flags, 0o600)


def no_follow(path: str, flags: int, mode: int = 0o666) -> int:
    """Open a file for ``open(path, mode, opener=no_follow)``: one that is a symbolic link is not written through.

    A run directory from elsewhere could hold a link of a log's name to any file of its new owner.

    Raises
    ------
    OSError
        When the file is a symbolic link, or cannot be opened.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, mode)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ENOTSUP, "it is a symbolic link and is not written through; remove it", path) from None


def empty_file(path: Path, content: bytes = b"") -> None:
    """Replace the content of a file that may be open, or create it, readable by its owner only.

    Raises
    ------
    OSError
        When the file is a symbolic link, or cannot be written.
    """
    with name_file(path), open(path, "wb", opener=private_no_follow) as stream:
        stream.write(content)


def append_line(path: Path, text: str) -> None:
    """Append a line to a log that its owner alone reads: as a whole or not at all, whoever else does so at this moment.

    Raises
    ------
    OSError
        When the line cannot be written.
    """
    line = text.encode() + b"\n"
    with name_file(path), open(path, "ab+", buffering=0, opener=private_no_follow) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        size = os.fstat(stream.fileno()).st_size
        if size and os.pread(stream.fileno(), 1, size - 1) != b"\n":  # a kill has torn the line before
            line = b"\n" + line
        try:
            while line:  # a full disk takes a part first
                line = line[stream.write(line) :]
        except OSError:
            os.ftruncate(stream.fileno(), size)
            raise


class LogTail:
    """Reader of the new lines of a text file that another process appends to.

    Parameters
    ----------
    path
        The file; it may not exist yet.
    from_end
        Skip the complete lines that are there now.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self.path = path
        self._offset = path.read_bytes().rfind(b"\n") + 1 if from_end and path.exists() else 0

    def lines(self) -> list[str]:
        """Return the lines since the last call; a line that is not complete yet comes with a later call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size < self._offset:  # see limit_log
                self._offset = 0
            stream.seek(self._offset)
            text = stream.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.decode(errors="replace").split("\n")[:-1]


def limit_log(path: Path, most: int = MAX_LOG_BYTES) -> None:
    """Move the content of a log that has more than ``most`` bytes to a file beside it, in place of the one before.

    The log is emptied, since its writer, who appends to it, has it open; what comes in this moment is lost.
    """
    if path.exists() and path.stat().st_size > most:
        with path.open("rb") as now, open(path.with_name(f"{path.name}.1"), "wb", opener=private_no_follow) as before:
            shutil.copyfileobj(now, before)
        empty_file(path)


@contextmanager
def follow_lines(
    path: Path, on_lines: Callable[[list[str]], None], *, from_end: bool = False, poll_seconds: float = 0.1
) -> Iterator[None]:
    """Pass new lines of a file to a callback from a thread while the context lasts, and a last time at its end."""
    tail, ended = LogTail(path, from_end=from_end), threading.Event()

    def loop() -> None:
        while True:
            last = ended.is_set()
            if lines := tail.lines():
                on_lines(lines)
            if last:
                return
            ended.wait(poll_seconds)

    thread = threading.Thread(target=loop, name=f"follow-{path.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


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
    with open(path / name, "w", opener=no_follow) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RunError(f"{path} is in use by another process; {remedy}") from None
        yield
