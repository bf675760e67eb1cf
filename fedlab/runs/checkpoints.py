"""Checkpoints of a run, ``checkpoints/round-N.pt``: all that is needed to resume to the same bits."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from fedlab.errors import RunError
from fedlab.files import complete_lines, replacing, write_atomically
from fedlab.tensor_files import UnreadableFileError, read_tensors


def _save(state: dict[str, object], stream: BinaryIO) -> None:
    """Save with torch, whose error hides that of a full disk."""
    try:
        torch.save(state, stream)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


class Checkpoints:
    """Checkpoints of one run directory, by round.

    Parameters
    ----------
    run
        The run directory; the folder of checkpoints in it is made when the first is saved.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def path(self, server_round: int) -> Path:
        """Return the path of a round's checkpoint, whether it exists or not."""
        return self.run / "checkpoints" / f"round-{server_round}.pt"

    def rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint, ascending."""
        return sorted(int(path.stem.removeprefix("round-")) for path in self.path(0).parent.glob("round-*.pt"))

    def save(
        self,
        server_round: int,
        state: Mapping[str, object],
        keep: int,
        keep_first: bool = False,
        keep_best: int | None = None,
    ) -> None:
        """Save the state after a round; delete all but the newest ``keep`` checkpoints, the first or best if asked."""
        with replacing(self.path(server_round)) as stream:
            _save(dict(state), stream)
        for old in self.rounds()[int(keep_first) : -keep]:
            if old != keep_best:
                self.path(old).unlink()

    def load(self, server_round: int) -> dict[str, Any]:
        """Return the state after a round, tensors on the CPU; no code in the file is run.

        Raises
        ------
        RunError
            When the checkpoint is missing or cannot be read.
        """
        path = self.path(server_round)
        try:
            return dict(read_tensors(path))
        except (UnreadableFileError, TypeError, ValueError) as error:
            raise RunError(
                f"checkpoint {path} cannot be read ({error}); delete it to resume one round earlier"
            ) from None

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Return round and state of the newest checkpoint, or None; nothing is written.

        Raises
        ------
        RunError
            When it cannot be read.
        """
        rounds = self.rounds()
        return (rounds[-1], self.load(rounds[-1])) if rounds else None

    def rewind(self) -> tuple[int, dict[str, Any]] | None:
        """Return :meth:`latest` for a run that resumes from there; cut off later lines of ``metrics.jsonl``.

        Raises
        ------
        RunError
            When the checkpoint cannot be read, or a round up to it is missing in ``metrics.jsonl`` or damaged.
        """
        found, path = self.latest(), self.run / "metrics.jsonl"
        last = found[0] if found else -1
        lines = complete_lines(path)[: last + 1]  # a line for each round, from 0
        try:
            rounds = [json.loads(line)["round"] for line in lines]
        except (ValueError, TypeError, KeyError):
            rounds = []
        if rounds != list(range(last + 1)):
            raise RunError(
                f"the first lines of {path} should be rounds 0 to {last}, that of the newest checkpoint, and are not; "
                f"put it back, or start anew: fedlab run {self.run}/config.toml"
            )
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        return found

    def copy(self, source: Path, server_round: int) -> None:
        """Copy a round's checkpoint from another run directory."""
        path = self.path(server_round)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        shutil.copy(Checkpoints(source).path(server_round), temporary)
        temporary.rename(path)


def weights_sha256(state: object) -> str:
    """Return the SHA-256 over all tensors and arrays in nested mappings and sequences: names, types, shapes, bytes."""
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
