"""Run directory: the files of a run, written so that a kill at any moment loses at most one round.

::

    runs/<name>-<seed>/
        config.toml         every option, resolved
        manifest.json       see :mod:`fedlab.runs.manifest`
        split.json          where clients are simulated: how many examples of which class each of them trains on
        metrics.jsonl       one line a round: per-client metrics, bytes, seconds by phase
        events.jsonl        progress, one line an event, for progress displays
        tensorboard/        the same metrics as TensorBoard events
        checkpoints/        see :mod:`fedlab.runs.checkpoints`
        client-state/       see :mod:`fedlab.runs.client_state`
        images/             NAME-round-N.png: samples of a generative model
        report.html         the run at a glance
        clients.npz         data of a comparison page's figures of clients, if there was a comparison
        nodes.json          over gRPC: node id to the client whose key it proved
        .reserve            while it runs: room for its last words, should the disk be full then

Whole files are replaced atomically; the two logs are appended to line by line and a torn last line is ignored.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

from fedlab.config.schema import Config
from fedlab.errors import RunError, os_error_sentence
from fedlab.files import directory_lock, name_file, no_follow, read_lines, truncate_torn_line, write_atomically
from fedlab.runs.checkpoints import Checkpoints
from fedlab.runs.manifest import git_commit, now, read_manifest, update_manifest, versions
from fedlab.runs.numerics import numerics_of

EVENTS = "events.jsonl"
RESERVE = ".reserve"  # room for what a run writes at its end, given back when the disk is full
RESERVE_BYTES = 65_536
RUN_DIRECTORY = "FEDLAB_RUN_DIRECTORY"  # environment variable that tells a server process where its run is written


_directory: ContextVar[str] = ContextVar("run directory", default="")


@contextmanager
def use_directory(path: Path) -> Iterator[None]:
    """Make ``path`` the run directory of a server app that runs in the body, in this thread."""
    token = _directory.set(str(path))
    try:
        yield
    finally:
        _directory.reset(token)


def current_directory() -> Path | None:
    """Return where the engine wants the run written; None where an app was started by something else."""
    found = _directory.get() or os.environ.get(RUN_DIRECTORY, "")
    return Path(found) if found else None


class RunDirectory:
    """One run on disk; made with :meth:`create` or :meth:`open`, locked against a second writer as a context.

    Attributes
    ----------
    path
        Absolute path of the directory.
    checkpoints
        Its checkpoints.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoints = path, Checkpoints(path)
        self._lock = ExitStack()
        self._events: FileIO | None = None  # open while the directory is locked: there is an event for each client

    @classmethod
    def create(cls, parent: Path, config: Config) -> RunDirectory:
        """Make a fresh directory ``<name>-<seed>``, with a number appended when that exists already.

        Raises
        ------
        RunError
            When no directory can be made in ``parent``.
        """
        run, plugins = config.run, config.plugins
        name = run.name or f"{plugins['strategy'].section}-{plugins['workload'].section}"
        config = replace(config, run=replace(run, name=name))
        return cls.make(
            parent,
            f"{name}-{run.seed}",
            config.to_toml(),
            numerics=numerics_of(run),
            workload=run.workload,
            strategy=run.strategy,
            engine=run.engine,
            seed=run.seed,
            rounds=run.rounds,
            options=config.options(),
        )

    @classmethod
    def make(cls, parent: Path, stem: str, config: str, **facts: object) -> RunDirectory:
        """Make a fresh directory ``stem``, with a number appended when that exists already.

        Parameters
        ----------
        config
            Text of its ``config.toml``.
        facts
            Entries of its manifest beside those of every run.

        Raises
        ------
        RunError
            When no directory can be made in ``parent``.
        """
        path, count = parent / stem, 1
        try:
            parent.mkdir(parents=True, exist_ok=True)  # alone: FileExistsError means a file, or a link to nowhere
            while not _made(path):
                count += 1
                path = parent / f"{stem}-{count}"
        except OSError as error:
            raise RunError(f"no run directory can be made in {parent}: {os_error_sentence(error)}") from None
        run = cls(path.resolve())
        write_atomically(run.path / "config.toml", config.encode())
        run.update_manifest(
            status="created",
            id=secrets.token_hex(8),
            created=now(),
            versions=versions(),
            git_commit=git_commit(),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            **facts,
        )
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """Return an existing run directory.

        Raises
        ------
        RunError
            When ``path`` is no run directory.
        """
        path = Path(path).resolve()
        if not (path / "config.toml").is_file():
            raise RunError(f"{path} is no run directory: it has no config.toml; `fedlab run` makes one under runs/")
        return cls(path)

    @property
    def config_file(self) -> Path:
        """Return the resolved options, as they were at the start of the run: a preset."""
        return self.path / "config.toml"

    @property
    def page(self) -> Path:
        """Return the page of the run; it is written at its end."""
        return self.path / "report.html"

    def write_split(self, clients: Sequence[Mapping[str, object]], classes: Sequence[str] = ()) -> None:
        """Write the statistics of each client's training data, one line a client, and the names of known classes.

        They are what ``partition_statistics`` and ``class_names`` in ``fedlab/run_data.py`` return.
        """
        lines = ",\n".join(f"  {json.dumps(client)}" for client in clients)
        names = (
            f'"classes": {json.dumps(list(classes))}, '
            if any(client["labels"] for client in clients) and classes
            else ""
        )
        write_atomically(self.path / "split.json", f'{{{names}"clients": [\n{lines}\n]}}\n'.encode())

    def registered_nodes(self) -> dict[int, str] | None:
        """Return node id to the client that its key is registered for; None where nodes do not authenticate."""
        path = self.path / "nodes.json"
        if not path.exists():
            return None
        return {int(node): str(name) for node, name in json.loads(path.read_text(encoding="utf-8")).items()}

    def manifest(self) -> dict[str, Any]:
        """Return the manifest; RunError when it is damaged."""
        return read_manifest(self.path)

    def update_manifest(self, **facts: object) -> None:
        """Add or replace entries of the manifest."""
        update_manifest(self.path, **facts)

    def note_end(self, error: BaseException) -> None:
        """Record that a run was interrupted or failed, and why; a full disk must not hide that error.

        For these few lines the run has kept room from its start: without them it would seem to run on.
        """
        self._free_reserve()
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = os_error_sentence(error) if isinstance(error, OSError) else str(error)
        with suppress(OSError, RunError):
            self.update_manifest(
                status="interrupted" if interrupted else "failed", ended=now(), error=None if interrupted else reason
            )
        with suppress(OSError):
            self.emit("failed", error=type(error).__name__, reason=reason)

    def stopped_by(self, error: OSError) -> RunError:
        """Return the error of a run that the operating system stopped; it says how to go on."""
        return RunError(
            f"the run stopped: {os_error_sentence(error)}. What was done is kept; after that, `fedlab resume "
            f"{self.path}` goes on"
        )

    # --- one writer at a time ---

    def __enter__(self) -> RunDirectory:
        """Lock the directory against a second writer; the kernel releases the lock when the process dies."""
        self._lock.enter_context(directory_lock(self.path, wait=False))
        truncate_torn_line(self.path / EVENTS)
        with name_file(self.path / EVENTS):
            self._events = self._lock.enter_context(open_log(self.path / EVENTS))
        with suppress(OSError):  # a disk that is full by now stops the run at its first file, which is then named
            write_atomically(self.path / RESERVE, secrets.token_bytes(RESERVE_BYTES))  # no file system makes them less
        return self

    def __exit__(self, *_: object) -> None:
        self._events = None
        self._free_reserve()
        self._lock.close()

    def _free_reserve(self) -> None:
        with suppress(OSError):
            (self.path / RESERVE).unlink(missing_ok=True)

    # --- logs ---

    def emit(self, event: str, /, **fields: object) -> None:
        """Append an event to ``events.jsonl``."""
        self.emit_all(event, [fields])

    def emit_all(self, event: str, entries: Iterable[Mapping[str, object]]) -> None:
        """Append events of one kind to ``events.jsonl``, at once; each entry has the fields of one."""
        when = round(time.time(), 3)
        with (
            name_file(self.path / EVENTS),
            nullcontext(self._events) if self._events else open_log(self.path / EVENTS) as stream,
        ):
            append_lines(stream, [{"time": when, "event": event, **fields} for fields in entries])

    def log_round(self, record: Mapping[str, object]) -> None:
        """Append one round to ``metrics.jsonl``, on the disk before this returns."""
        path = self.path / "metrics.jsonl"
        with name_file(path), open_log(path) as stream:
            append_lines(stream, [record])
            os.fsync(stream.fileno())

    def rounds(self) -> list[dict[str, Any]]:
        """Return the records of the rounds so far, oldest first."""
        return read_lines(self.path / "metrics.jsonl")

    # --- images ---

    def save_image(self, name: str, server_round: int, png: bytes) -> None:
        """Save an image of a round; one of the same name and round is replaced."""
        write_atomically(self.path / "images" / f"{name}-round-{server_round}.png", png)

    def images(self) -> dict[str, dict[int, Path]]:
        """Return the paths of images by name and round, rounds ascending."""
        found: dict[str, dict[int, Path]] = {}
        for path in sorted(sorted((self.path / "images").glob("*-round-*.png")), key=_round_of):
            found.setdefault(path.stem.rpartition("-round-")[0], {})[_round_of(path)] = path
        return found


def open_log(path: Path) -> FileIO:
    """Open a log to append lines to it, without a buffer: what a full disk refuses is not tried again at the end."""
    return open(path, "ab", buffering=0, opener=no_follow)


def append_lines(stream: FileIO, records: Iterable[Mapping[str, object]]) -> None:
    """Append each record as a line, so that a reader sees it whole."""
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    while lines:  # a full disk takes a part first
        lines = lines[stream.write(lines) :]


def _made(path: Path) -> bool:
    """Make a directory; return False when something of that name is there."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _round_of(path: Path) -> int:
    return int(path.stem.rpartition("round-")[2])
