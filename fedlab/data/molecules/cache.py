"""Columns of texts and tensors kept in the user's cache folder (``$XDG_CACHE_HOME/fedlab/molecules``)."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor


def folder() -> Path:
    """The user's cache folder for molecules; it need not exist, or be writable."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fedlab" / "molecules"


def key(*names: str) -> str:
    """A name for all that a content depends on."""
    return hashlib.sha256("\x1f".join(names).encode()).hexdigest()[:16]


def keep(path: Path, texts: Mapping[str, Sequence[str]], tensors: Mapping[str, Tensor]) -> None:
    """Write columns in one move, texts without line breaks; a folder that cannot be written to is no error."""
    columns = {name: np.frombuffer("\n".join(column).encode(), np.uint8) for name, column in texts.items()}
    stream = io.BytesIO()
    np.savez_compressed(
        stream, allow_pickle=False, **columns, **{name: tensor.numpy() for name, tensor in tensors.items()}
    )
    write(path, stream.getvalue())


def recall(
    path: Path, texts: Sequence[str], tensors: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, Tensor]] | None:
    """The columns of these names; None where there is no such file, or it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            found = {name: tuple(kept[name].tobytes().decode().split("\n")) for name in texts}
            return found, {name: torch.from_numpy(kept[name]) for name in tensors}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
        return None


def write(path: Path, content: bytes) -> bool:
    """Write a file in one move, and say whether that was possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
            temporary.write(content)
        os.replace(temporary.name, path)
    except OSError:
        return False
    return True
