"""Cache of pre-training that several runs have in common: computed once, and read by the others bit for bit.

A run opens :func:`use_cache` around its start; within it :func:`get_or_compute` looks up a result by a key that names
all that the result depends on. Each result is a file; a process that needs one that is being computed waits for it. The
kernel releases the lock of a process that was killed, and files are written atomically.

``PretrainCache.saved_seconds`` makes the reported seconds of a run independent of which run came first: it is the time
that computing took, less the time that reading took.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedlab.errors import FedlabWarning, os_error_sentence
from fedlab.files import directory_lock, write_atomically
from fedlab.tensor_files import UnreadableFileError, read_tensors


@dataclass
class PretrainCache:
    """A folder of results.

    Attributes
    ----------
    saved_seconds
        Seconds that computing the results took that were read, less those that looking them up took.
    """

    folder: Path
    saved_seconds: float = 0.0


_active: ContextVar[PretrainCache | None] = ContextVar("pretrain_cache", default=None)


@contextmanager
def use_cache(folder: str) -> Iterator[PretrainCache]:
    """Make :func:`get_or_compute` use a folder while the context lasts; with an empty name nothing is cached."""
    cache = PretrainCache(Path(folder))
    token = _active.set(cache if folder else None)
    try:
        yield cache
    finally:
        _active.reset(token)


def get_or_compute(
    key: Callable[[], str], compute: Callable[[], dict[str, Any]], device: torch.device
) -> dict[str, Any]:
    """Return tensors and numbers as ``compute`` returns them, computed here or read from the cache.

    Parameters
    ----------
    key
        Called only where a cache is active.
    device
        Device of tensors that are read.
    """
    cache = _active.get()
    if cache is None:
        return compute()
    started, name = time.monotonic(), key()
    path = cache.folder / f"{name}.pt"
    with directory_lock(cache.folder, wait=True, name=f".{name}.lock"):
        if path.exists():
            try:
                found = dict(read_tensors(path, device))
                cache.saved_seconds += found.pop("seconds") - (time.monotonic() - started)
                return found
            except (UnreadableFileError, TypeError, ValueError, KeyError) as error:
                said = f"cached pre-training {path} cannot be read ({error}); it is computed anew"
                warnings.warn(said, FedlabWarning, stacklevel=2)
        compute_started = time.monotonic()
        computed = compute()
        cache.saved_seconds -= compute_started - started  # waiting for the lock is not charged to the run
        content = io.BytesIO()
        torch.save({**computed, "seconds": time.monotonic() - compute_started}, content)
        try:
            write_atomically(path, content.getvalue())
        except OSError as error:  # what took so long is not lost: it is only not there for the next run
            warnings.warn(f"pre-training was not cached: {os_error_sentence(error)}", FedlabWarning, stacklevel=2)
    return computed
