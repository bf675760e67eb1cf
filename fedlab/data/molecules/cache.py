"""Columns of texts and tensors saved in the user's cache folder (``$XDG_CACHE_HOME/fedlab/molecules``)."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from fedlab.data.cache import try_write


def save(path: Path, texts: Mapping[str, Sequence[str]], tensors: Mapping[str, Tensor]) -> None:
    """Write columns atomically, texts without line breaks; a folder that cannot be written to is ignored."""
    columns = {name: np.frombuffer("\n".join(column).encode(), np.uint8) for name, column in texts.items()}
    stream = io.BytesIO()
    np.savez_compressed(
        stream, allow_pickle=False, **columns, **{name: tensor.numpy() for name, tensor in tensors.items()}
    )
    try_write(path, stream.getvalue())


def load(
    path: Path, texts: Sequence[str], tensors: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, Tensor]] | None:
    """Return the named text and tensor columns; None where the file is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            found = {name: tuple(kept[name].tobytes().decode().split("\n")) for name in texts}
            return found, {name: torch.from_numpy(kept[name]) for name in tensors}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
        return None
