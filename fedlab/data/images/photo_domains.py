"""Domains of photographs: who has which images, from folders of one's own or from PACS.

A server's images have the class of their sub-folder. A client's are bare; the sub-folder that one lies in names its
class for testing alone, or for upper bounds. See :mod:`fedlab.data.images.photo_folders` for the folders.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from fedlab.data.digits.folder_files import TEST, SkippedFilesWarning
from fedlab.data.images import photo_folders
from fedlab.data.images.domain_suites import load_domain
from fedlab.data.images.image_stores import FileStore, MemoryStore
from fedlab.data.images.pacs import PACS, read_domain
from fedlab.data.images.photo_folders import Photo
from fedlab.errors import ConfigError, DataError, plural, suggest

PACS_SIZE = 64  # pixels a side of the full set
PACS_PHOTOS = replace(PACS, read_domain=partial(read_domain, size=PACS_SIZE))


@dataclass(frozen=True)
class Part:
    """Some images of a store, and their classes where these are known.

    Attributes
    ----------
    rows
        Row numbers in the store (images,).
    labels
        Classes (images,), or None.
    """

    store: FileStore | MemoryStore
    rows: Tensor
    labels: Tensor | None

    def subsample(self, count: int) -> Part:
        """Return at most ``count`` images at equal distances, in a store of their own; 0: all."""
        if not 0 < count < len(self.rows):
            return self
        chosen = torch.linspace(0, len(self.rows) - 1, count).long()
        labels = None if self.labels is None else self.labels[chosen]
        return Part(_selected(self.store, tuple(self.rows[chosen].tolist())), torch.arange(count), labels)


@lru_cache(maxsize=32)
def pacs_part(domain: str, split: str, with_labels: bool, root: Path | None, size: int) -> Part:
    """Return one part of a domain of PACS, at ``size`` pixels; 64 where the full set is there, else 32, are its own.

    Raises
    ------
    DataError
        When the set's file is damaged.
    """
    examples = load_domain(PACS_PHOTOS, domain, split, root, with_labels=with_labels)
    x = examples.columns["x"]
    return Part(_memory_store(x, size), torch.arange(len(x)), examples.columns.get("y"))


@lru_cache(maxsize=16)
def _memory_store(x: Tensor, size: int) -> MemoryStore:  # tensors are found by identity; domains are read once
    return MemoryStore(x, size)


@lru_cache(maxsize=16)
def _file_store(photos: tuple[Photo, ...], size: int) -> FileStore:
    return FileStore([photo.path for photo in photos], [photo.sha256 for photo in photos], size)


@lru_cache(maxsize=32)
def _selected(store: FileStore | MemoryStore, rows: tuple[int, ...]) -> FileStore | MemoryStore:
    return store.select(rows)


def source_classes(folder: Path) -> tuple[str, ...]:
    """Return the classes of a server's folder: its sub-folders.

    Raises
    ------
    ConfigError
        When there are fewer than two.
    """
    names = photo_folders.class_folders(folder)
    if len(names) < 2:
        found = f"one sub-folder, {names[0]!r}" if names else "no sub-folder"
        raise ConfigError(f"{folder} has {found}; put the images of each class into a sub-folder, of two or more")
    return names


def source_part(folder: Path, classes: Sequence[str], split: str, holdout: float, size: int) -> Part:
    """Return the server's images of a split; those to test on are a fraction of each class, and not trained on.

    Parameters
    ----------
    holdout
        Fraction of each class that is tested on. Where that is less than one image in all, training images are.

    Raises
    ------
    DataError
        When a class has no usable image.
    """
    photos = photo_folders.find_photos(folder)
    labels = [_class_of(photo.parts[:1], classes) for photo in photos]
    empty = [name for number, name in enumerate(classes) if number not in labels]
    if empty:
        raise DataError(f"{folder / empty[0]} holds no image that can be used; put some into it, or delete it")
    _warn_outside(folder, [photo for photo, label in zip(photos, labels, strict=True) if label is None], classes)
    known = [row for row, label in enumerate(labels) if label is not None]
    tested = _held_out(photos, labels, holdout)
    rows = [row for row in known if (row in tested) == (split != "train")] or known
    return _part(photos, rows, labels, size)


def _held_out(photos: Sequence[Photo], labels: Sequence[int | None], fraction: float) -> set[int]:
    """Return the rows of the images to test on: of each class those whose hashes come first, never all of them."""
    chosen: set[int] = set()
    for label in set(labels) - {None}:
        rows = sorted((row for row, own in enumerate(labels) if own == label), key=lambda row: photos[row].sha256)
        chosen.update(rows[: min(round(fraction * len(rows)), len(rows) - 1)])
    return chosen


def client_part(folder: Path, classes: Sequence[str], split: str, with_labels: bool, size: int) -> Part:
    """Return a client's images of a split.

    Without a folder ``test/``, all images that lie in the folder of a class are tested on, by that class, as is usual
    in unsupervised adaptation; where there are none, all images without labels.

    Parameters
    ----------
    with_labels
        Give the classes of training images, for upper bounds; images outside of a class's folder are left out.

    Raises
    ------
    DataError
        When there is no image to train on, or none with a class where labels are asked for.
    """
    photos = photo_folders.find_photos(folder)
    apart = [bool(photo.parts) and photo.parts[0].lower() == TEST for photo in photos]
    labels = [
        _class_of(photo.parts[1:2] if tested else photo.parts[:1], classes)
        for photo, tested in zip(photos, apart, strict=True)
    ]
    training = [row for row, tested in enumerate(apart) if not tested]
    if not training:
        raise DataError(
            f"every image of {folder} lies in its sub-folder {TEST}/, which is for testing only; put those that the "
            "client may train on beside it"
        )
    strangers = [photo for photo, tested, label in zip(photos, apart, labels, strict=True) if tested and label is None]
    _warn_outside(folder / TEST, strangers, classes)
    labeled = [row for row in training if labels[row] is not None]
    if split == "train":
        if with_labels and not labeled:
            raise DataError(f"no image of {folder} lies in a folder of a class ({', '.join(classes[:5])}, ...)")
        rows = labeled if with_labels else training
        return _part(photos, rows, labels if with_labels else None, size)
    tested_rows = [row for row, tested in enumerate(apart) if tested and labels[row] is not None] or labeled
    return _part(photos, tested_rows or training, labels if tested_rows else None, size)


def _part(photos: tuple[Photo, ...], rows: Sequence[int], labels: Sequence[int | None] | None, size: int) -> Part:
    classes = None if labels is None else torch.tensor([labels[row] for row in rows])
    return Part(_file_store(photos, size), torch.tensor(rows), classes)


def _class_of(parts: tuple[str, ...], classes: Sequence[str]) -> int | None:
    """Return the class that a sub-folder names, in any case of its letters where that is unambiguous; None for none."""
    if not parts:
        return None
    if parts[0] in classes:
        return classes.index(parts[0])
    alike = [number for number, name in enumerate(classes) if name.casefold() == parts[0].casefold()]
    return alike[0] if len(alike) == 1 else None


_warned: set[tuple[str, int]] = set()


def _warn_outside(folder: Path, photos: Sequence[Photo], classes: Sequence[str]) -> None:
    """Warn once a process of images with a sub-folder that is no class of the source."""
    if not photos or (str(folder), len(photos)) in _warned:
        return
    _warned.add((str(folder), len(photos)))
    depth = len(folder.parts)
    names = Counter(photo.path.parts[depth] if len(photo.path.parts) > depth + 1 else "" for photo in photos)
    which = "; ".join(
        f"{count} in {name!r}, {suggest(name, classes)}" if name else f"{count} in no sub-folder"
        for name, count in sorted(names.items())[:3]
    )
    warnings.warn(
        f"{plural(len(photos), 'image')} of {folder} left out, in no folder of a class of the source: {which}",
        SkippedFilesWarning,
        stacklevel=3,
    )
