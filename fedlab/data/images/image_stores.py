"""Images of one size that are named by their content, whether they lie in files or in memory.

A store is read by row numbers and never as a whole: :func:`lazy_dataset` holds the names only, and decodes a batch when
it is indexed. Decoded images are remembered as long as they fit into ``MAX_MEMORY``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.images import photo_files
from fedlab.data.images.photo_folders import run_parallel
from fedlab.data.pixels import bytes_to_float
from fedlab.errors import DataError

MAX_MEMORY = 512 << 20  # bytes of decoded images that one store remembers
NAME_BYTES = 8  # of a content's hash, as an integer


class ImageStore(Protocol):
    """Images (3, size, size) by row number.

    Attributes
    ----------
    names
        The first 64 bits of each content's SHA-256 (images,), int64.
    size
        Pixels a side.
    """

    names: Tensor
    size: int

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Return images (rows, 3, size, size), uint8."""
        ...

    def select(self, rows: Sequence[int]) -> ImageStore:
        """Return a store of some of the images."""
        ...


class FileStore:
    """Image files, decoded when they are read.

    Parameters
    ----------
    paths, hashes
        Files, and the SHA-256 of each content.
    size
        Pixels a side.
    """

    def __init__(self, paths: Sequence[Path], hashes: Sequence[str], size: int) -> None:
        self.paths, self.hashes, self.size = list(paths), list(hashes), size
        self.names = torch.tensor([_name(bytes.fromhex(digest)) for digest in hashes], dtype=torch.long)
        self._known: dict[int, Tensor] = {}

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Return images (rows, 3, size, size), uint8.

        Raises
        ------
        DataError
            When a file has become unreadable since it was examined.
        """
        new = [row for row in dict.fromkeys(rows) if row not in self._known]
        decoded = dict(zip(new, load_files([self.paths[row] for row in new], self.size), strict=True))
        room = MAX_MEMORY // (3 * self.size**2) - len(self._known)
        found = torch.stack([decoded[row] if row in decoded else self._known[row] for row in rows])
        self._known.update(list(decoded.items())[: max(room, 0)])
        return found

    def select(self, rows: Sequence[int]) -> FileStore:
        """Return a store of some of the images."""
        return FileStore([self.paths[row] for row in rows], [self.hashes[row] for row in rows], self.size)


class MemoryStore:
    """Images in memory, enlarged or reduced when they are read (bicubic, antialiased).

    Parameters
    ----------
    x
        Images (N, 3, side, side), uint8.
    size
        Pixels a side of what is read.
    """

    def __init__(self, x: Tensor, size: int) -> None:
        self.x, self.size = x, size
        self.names = torch.tensor([_name(hashlib.sha256(image.numpy()).digest()) for image in x], dtype=torch.long)

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Return images (rows, 3, size, size), uint8."""
        x = self.x[torch.tensor(rows, dtype=torch.long)]
        if x.shape[-1] == self.size:
            return x
        sides = (self.size, self.size)
        return interpolate(x.float(), sides, mode="bicubic", antialias=True).round().clamp(0, 255).byte()

    def select(self, rows: Sequence[int]) -> MemoryStore:
        """Return a store of some of the images."""
        return MemoryStore(self.x[torch.tensor(rows, dtype=torch.long)], self.size)


def _name(digest: bytes) -> int:
    return int.from_bytes(digest[:NAME_BYTES], "big", signed=True)


def load_files(paths: Sequence[Path], size: int) -> Tensor:
    """Return image files as (N, 3, size, size) uint8, in the order given, decoded by worker processes.

    Raises
    ------
    DataError
        When some cannot be read: the number of these, and the first one with the reason.
    """
    results = run_parallel(partial(photo_files.try_photo, size=size), paths)
    bad = [(path, result) for path, result in zip(paths, results, strict=True) if isinstance(result, str)]
    if bad:
        more = f", the first of {len(bad)} such files among {len(paths)}" if len(bad) > 1 else ""
        raise DataError(f"image {bad[0][0]} cannot be read: {bad[0][1]}{more}; replace it, or take it away")
    if not results:
        return torch.empty(0, 3, size, size, dtype=torch.uint8)
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).contiguous()  # type: ignore[arg-type]


def content_key(store: ImageStore) -> str:
    """Return a text that names the content of all images in their order, and their size."""
    return f"{store.size}|{hashlib.sha256(store.names.numpy().tobytes()).hexdigest()}"


def lazy_dataset(
    store: ImageStore, rows: Tensor, columns: Mapping[str, Tensor], view: Callable[[Tensor], Tensor] | None = None
) -> ArrayDataset:
    """Return a data set that reads images of a store when it is indexed.

    Parameters
    ----------
    rows
        Row numbers in the store (N,).
    columns
        Further columns, one row an image, for instance labels ``y`` (images,).
    view
        A random view of images (batch, 3, size, size) in [-1, 1].

    Returns
    -------
    ArrayDataset
        x : (N, 3, size, size), float32 in [-1, 1] once indexed; in ``columns`` the names of the contents (N,), int64.
    """
    row_of = {name: row for row, name in enumerate(store.names.tolist())}

    def read(batch: Batch) -> Batch:
        names = batch["x"]
        x = bytes_to_float(store.pixels([row_of[name] for name in names.reshape(-1).tolist()]))
        x = x if view is None else view(x)
        others = {name: column.clone() for name, column in batch.items()}
        return {**others, "x": x.reshape(*names.shape, *x.shape[1:])}

    return ArrayDataset({"x": store.names[rows], **columns}, read, host_only=True)
