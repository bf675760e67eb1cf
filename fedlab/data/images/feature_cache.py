"""Rows of features that are computed once on a machine and read from the user's cache folder from then on.

A file is named after everything that its content depends on; beside it stand its shape and SHA-256, and one that does
not fit them is computed again. It is mapped into memory, so a set may be larger than that. Where the folder cannot be
written to, features are computed once a process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlab.data.cache import cache_folder, try_write
from fedlab.files import directory_lock

Rows = NDArray[np.float32]
MAX_KNOWN = 64  # sets that a process keeps open
BLOCK = 1 << 24

_known: dict[str, Tensor] = {}


def get_or_compute(key: str, shape: tuple[int, ...], fill: Callable[[Rows], None]) -> Tensor:
    """Return features of this key, float32 of a shape (examples, ...): from this process, from the cache, or computed.

    Parameters
    ----------
    key
        File name made from all that they depend on.
    fill
        Writes every row of the array that it is given.
    """
    if key not in _known:
        while len(_known) >= MAX_KNOWN:
            del _known[next(iter(_known))]
        _known[key] = torch.from_numpy(_from_disk(key, shape, fill))
    return _known[key]


def _from_disk(key: str, shape: tuple[int, ...], fill: Callable[[Rows], None]) -> Rows:
    folder = cache_folder("features")
    with suppress(OSError), directory_lock(folder, wait=True, name=f".{key}.lock"):
        path = folder / f"{key}.npy"
        found = _read(path, shape)
        return _write(path, shape, fill) if found is None else found
    rows: Rows = np.empty(shape, np.float32)
    fill(rows)
    return rows


def _read(path: Path, shape: tuple[int, ...]) -> Rows | None:
    """Return what a file holds; None where it is missing, damaged or of another shape."""
    try:
        facts = json.loads(path.with_suffix(".json").read_bytes())
        if facts != {"shape": list(shape), "sha256": _sha256(path)}:
            return None
        return _mapped(path)
    except (OSError, ValueError, EOFError):
        return None


def _write(path: Path, shape: tuple[int, ...], fill: Callable[[Rows], None]) -> Rows:
    """Fill a file that takes its name when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        rows: Any = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        fill(rows)
        rows.flush()
        del rows
        facts = {"shape": list(shape), "sha256": _sha256(temporary)}
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    try_write(path.with_suffix(".json"), json.dumps(facts).encode())
    return _mapped(path)


def _mapped(path: Path) -> Rows:
    """Return a file's rows; copy-on-write, since torch wants memory that could be written to."""
    rows: Rows = np.load(path, mmap_mode="c", allow_pickle=False)
    return rows


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
