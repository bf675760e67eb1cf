"""The run directory: what a run leaves behind, written so that a kill at any moment loses at most one round.

::

    runs/<name>-<seed>/
        config.toml         every knob, resolved
        manifest.json       status, versions, git commit, seed, engine, device, times, SHA-256 of the final weights
        split.json          where clients are simulated: how many examples of which class each of them trains on
        metrics.jsonl       one line a round: per-client metrics, bytes, seconds by phase
        events.jsonl        progress, line by line, for whoever is watching
        tensorboard/        the same metrics as TensorBoard events
        checkpoints/        round-N.pt: all that is needed to resume to the same bits
        pictures/           NAME-round-N.png: what a generative model drew
        report.html         the run at a glance
        clients.npz         what a comparison's page draws of the clients, if there was one
        nodes.json          over gRPC: node id to the client whose key it proved

Whole files are replaced atomically; the two logs are appended to line by line and a torn last line is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedlab.config.schema import Flat, read_preset, to_toml
from fedlab.errors import RunError
from fedlab.files import directory_lock, write_atomically

PACKAGES = ("fedlab-adapt", "flwr", "torch", "torchvision", "numpy", "scikit-learn", "ray", "grpcio")


def weights_sha256(state: object) -> str:
    """SHA-256 over every tensor and array in a nest of mappings and sequences: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, array in _arrays("", state):
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _arrays(name: str, value: object) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    if isinstance(value, torch.Tensor):
        yield name, value.detach().cpu().numpy()
    elif isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _arrays(f"{name}/{key}", value[key])
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _arrays(f"{name}/{index}", item)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of a log; a last line torn by a kill is left out.

    Raises
    ------
    RunError
        For a line that is damaged otherwise.
    """
    found: list[dict[str, Any]] = []
    for number, line in enumerate(_complete_lines(path), 1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise RunError(f"line {number} of {path} is damaged: {line[:40]!r}; delete that line") from None
    return found


def _complete_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [line for line in text[: text.rfind("\n") + 1].split("\n") if line]


class RunDirectory:
    """One run on disk. Make it with :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = ExitStack()

    @classmethod
    def create(cls, parent: Path, config: Flat) -> RunDirectory:
        """A fresh directory ``<name>-<seed>``, with a number behind it when that is taken: nothing is overwritten."""
        name = config["name"] or f"{config['strategy']}-{config['workload']}"
        stem = f"{name}-{config['seed']}"
        path, count = parent / stem, 1
        while True:
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                count += 1
                path = parent / f"{stem}-{count}"
            except OSError as error:
                raise RunError(f"no run directory can be made in {parent}: {error}; choose another") from None
        run = cls(path.resolve())
        write_atomically(run.path / "config.toml", to_toml({**config, "name": name, "run_dir": ""}).encode())
        run.note(
            status="created",
            created=now(),
            versions=versions(),
            git_commit=git_commit(),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            seed=config["seed"],
            engine=config["engine"],
        )
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """An existing run directory.

        Raises
        ------
        RunError
            When ``path`` is no run directory.
        """
        path = Path(path).resolve()
        if not (path / "config.toml").is_file():
            raise RunError(f"{path} is no run directory: it has no config.toml; `fedlab run` makes one under runs/")
        return cls(path)

    def config(self) -> dict[str, bool | int | float | str]:
        """The resolved knobs, as they were at the start of the run."""
        return {**read_preset(str(self.path / "config.toml"))[1], "run_dir": str(self.path)}

    def write_split(self, clients: Sequence[Mapping[str, object]]) -> None:
        """Write what each client trains on, as ``split_of`` in ``fedlab/launch.py`` tells it."""
        text = json.dumps({"clients": list(clients)}, indent=2)
        write_atomically(self.path / "split.json", text.encode() + b"\n")

    def owners(self) -> dict[int, str] | None:
        """Node id to the client that its key is registered for; None where nodes do not prove who they are."""
        path = self.path / "nodes.json"
        if not path.exists():
            return None
        return {int(node): str(name) for node, name in json.loads(path.read_text(encoding="utf-8")).items()}

    # --- one writer at a time ---

    def __enter__(self) -> RunDirectory:
        """Hold the directory against a second writer; the kernel lets go when the process dies."""
        self._lock.enter_context(directory_lock(self.path, wait=False))
        self._mend("events.jsonl")
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    # --- manifest ---

    def manifest(self) -> dict[str, Any]:
        """What is known of the run as a whole."""
        path = self.path / "manifest.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error}); delete it, and `fedlab resume {self.path}` goes on") from None

    def note(self, **facts: object) -> None:
        """Add facts to the manifest."""
        text = json.dumps({**self.manifest(), **facts}, indent=2)
        write_atomically(self.path / "manifest.json", text.encode() + b"\n")

    # --- logs ---

    def emit(self, event: str, /, **fields: object) -> None:
        """Tell whoever watches what is going on."""
        self._append("events.jsonl", {"time": round(time.time(), 3), "event": event, **fields}, sync=False)

    def log_round(self, record: Mapping[str, object]) -> None:
        """Append one round to ``metrics.jsonl``, on the disk before this returns."""
        self._append("metrics.jsonl", record, sync=True)

    def rounds(self) -> list[dict[str, Any]]:
        """The rounds so far, oldest first."""
        return read_lines(self.path / "metrics.jsonl")

    def _mend(self, name: str) -> None:
        """Cut off a last line that a kill has torn, before anything is written behind it."""
        path = self.path / name
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):
            write_atomically(path, content[: content.rfind(b"\n") + 1])

    def _append(self, name: str, record: Mapping[str, object], sync: bool) -> None:
        with (self.path / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            if sync:
                os.fsync(stream.fileno())

    # --- pictures ---

    def keep_picture(self, name: str, server_round: int, png: bytes) -> None:
        """Keep a picture of a round; one of the same name and round is replaced."""
        write_atomically(self.path / "pictures" / f"{name}-round-{server_round}.png", png)

    def pictures(self) -> dict[str, dict[int, Path]]:
        """Pictures by name and round, rounds ascending."""
        found: dict[str, dict[int, Path]] = {}
        for path in sorted(sorted((self.path / "pictures").glob("*-round-*.png")), key=_round_of):
            found.setdefault(path.stem.rpartition("-round-")[0], {})[_round_of(path)] = path
        return found

    # --- checkpoints ---

    def checkpoint(self, server_round: int, state: Mapping[str, object], keep: int, start: bool = False) -> None:
        """Save the state after a round and drop older ones than the ``keep`` newest; ``start`` keeps the first."""
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        temporary = folder / f".round-{server_round}.tmp"
        with temporary.open("wb") as stream:
            torch.save(dict(state), stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(folder / f"round-{server_round}.pt")
        for path in self._checkpoints()[int(start) : -keep]:
            path.unlink()

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint as (round, state), or None; nothing is written.

        Raises
        ------
        RunError
            When it cannot be read.
        """
        checkpoints = self._checkpoints()
        if not checkpoints:
            return None
        path = checkpoints[-1]
        try:
            return _round_of(path), dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise RunError(
                f"checkpoint {path} cannot be read ({error}); delete it to resume one round earlier"
            ) from None

    def go_back(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint, for a run that goes on from there: later lines of ``metrics.jsonl`` are cut off.

        Raises
        ------
        RunError
            When the checkpoint cannot be read, or a round up to it is missing in ``metrics.jsonl`` or damaged.
        """
        found, path = self.newest(), self.path / "metrics.jsonl"
        last = found[0] if found else -1
        lines = _complete_lines(path)[: last + 1]  # a line for each round, from 0
        try:
            rounds = [json.loads(line)["round"] for line in lines]
        except (ValueError, TypeError, KeyError):
            rounds = []
        if rounds != list(range(last + 1)):
            raise RunError(
                f"the first lines of {path} should be rounds 0 to {last}, that of the newest checkpoint, and are not; "
                f"put it back, or start anew: fedlab run {self.path}/config.toml"
            )
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        return found

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("round-*.pt"), key=_round_of)


def _round_of(path: Path) -> int:
    return int(path.stem.rpartition("round-")[2])


def now() -> str:
    """The time with its zone, for a manifest."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def versions() -> dict[str, str]:
    """Of Python and of what results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str:
    """The commit of the checkout that fedlab runs from, "-dirty" behind it when files differ; empty outside one."""
    folder = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
