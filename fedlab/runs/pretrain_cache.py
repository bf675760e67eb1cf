"""Pre-training that several runs have in common is done once, and the others take it over bit for bit.

A run that shares opens a :func:`shared` folder around its start; within it :func:`once` looks up what it is about to
compute by a key that names all that the result depends on. Each result is a file; who comes while it is being made
waits for it. A kill leaves a lock that the kernel lets go, and no half of a file.

What a run took over cost somebody time: ``Store.credit`` says how much more than reading it, so that a run's seconds
do not depend on who came first.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedlab.files import directory_lock, write_atomically


@dataclass
class Store:
    """A folder of results.

    Attributes
    ----------
    credit
        Seconds that what was taken over took to make, less those that taking it over took.
    """

    folder: Path
    credit: float = 0.0


_open: ContextVar[Store | None] = ContextVar("pretraining", default=None)


@contextmanager
def shared(folder: str) -> Iterator[Store]:
    """Share what :func:`once` makes in the body through a folder; nothing is shared where that is empty."""
    store = Store(Path(folder))
    token = _open.set(store if folder else None)
    try:
        yield store
    finally:
        _open.reset(token)


def once(key: Callable[[], str], make: Callable[[], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """Tensors and numbers as ``make`` returns them, made here or taken over from another run.

    Parameters
    ----------
    key
        Asked for only where results are shared.
    device
        Where the tensors belong.
    """
    store = _open.get()
    if store is None:
        return make()
    started, name = time.monotonic(), key()
    path = store.folder / f"{name}.pt"
    with directory_lock(store.folder, wait=True, name=f".{name}.lock"):
        if path.exists():
            found = dict(torch.load(path, map_location=device, weights_only=True))
            store.credit += found.pop("seconds") - (time.monotonic() - started)
            return found
        begun = time.monotonic()
        made = make()
        store.credit -= begun - started  # no run pays for sharing
        content = io.BytesIO()
        torch.save({**made, "seconds": time.monotonic() - begun}, content)
        write_atomically(path, content.getvalue())
    return made
