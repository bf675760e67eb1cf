"""A folder of a client's own images.

::

    FOLDER/**/*.png, *.jpg, ...       training images, without labels, in sub-folders of any names
    FOLDER/test/0/ to FOLDER/test/9/  optional: images to measure accuracy on, each in the folder of its class

No label is read from anywhere else. See :mod:`fedlab.data.digits.image_files` for the kinds of files and how one
becomes an image, and :mod:`fedlab.data.digits.folder_files` for which are found. Nothing is written; a process decodes
a folder once, and again when its files have changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fedlab.data.dataset import ArrayDataset
from fedlab.data.digits import folder_files, image_files
from fedlab.data.digits.datasets import CLASSES
from fedlab.data.digits.folder_files import FolderFiles
from fedlab.data.pixels import to_float
from fedlab.errors import DataError, plural, suggest

SPLITS = ("train", "test")

Stamp = tuple[Path, int, int]  # a file, its bytes, and when it was changed in nanoseconds


def load_image_folder(folder: Path, split: str) -> ArrayDataset:
    """Return the images of one split, sorted by path.

    The columns are shared by all callers in the process: treat them as read-only.

    Parameters
    ----------
    folder
        Folder of image files, see the module.
    split
        "train", or "test": the labeled images, or where there are none those of "train" once more, without labels.

    Returns
    -------
    ArrayDataset
        x : (N, 3, 32, 32), float32 in [-1, 1] once indexed, uint8 in ``columns``; y : (N,), int64 in 0..9, in "test"
        when the folder has labels.

    Raises
    ------
    DataError
        For a path that is no folder, a folder without training images, a test image outside the folders of the classes,
        and files that cannot be read.
    """
    if split not in SPLITS:
        raise DataError(f"no split {split!r} of a folder of images; {suggest(split, SPLITS)}")
    training, labeled = split_files(folder)
    if split == "train" or not labeled:
        return ArrayDataset({"x": _load(_stamps(training))}, to_float)
    classes = torch.tensor(list(labeled.values()))
    return ArrayDataset({"x": _load(_stamps(labeled)), "y": classes}, to_float)


def split_files(folder: Path) -> tuple[list[Path], dict[Path, int]]:
    """Return training files, and labeled test files with their classes, both sorted by path.

    Raises
    ------
    DataError
        When every image lies in the test folder, or that folder holds none; else as :func:`load_image_folder`.

    Warns
    -----
    SkippedFilesWarning
        When there are files that are no images.
    """
    test = folder_files.find_test_folder(folder)
    found = folder_files.list_folder(folder, test)
    everything = _images(found)
    labeled = {path: _class_of(path, folder) for path in everything if path.relative_to(folder).parts[0] == test}
    training = [path for path in everything if path not in labeled]
    if not training:
        raise DataError(
            f"every image of {folder} lies in its sub-folder {test}/, which is for testing only; put those that the "
            "client may train on beside it"
        )
    if not labeled and test:
        raise DataError(
            f"{folder / test} holds no image to test on; put some into its sub-folders 0 to {CLASSES - 1}, or delete it"
        )
    found.warn()
    return training, labeled


def find_image_files(folder: Path) -> list[Path]:
    """Return every image file below a folder, at least one, sorted by path.

    Raises
    ------
    DataError
        When ``folder`` is no folder, cannot be listed or holds no such file.

    Warns
    -----
    SkippedFilesWarning
        When there are files that are no images.
    """
    found = folder_files.list_folder(folder)
    images = _images(found)
    found.warn()
    return images


def _images(found: FolderFiles) -> list[Path]:
    if not found.images:
        what = (
            f"only {plural(len(found.others), 'file')} of other kinds ({found.skipped()})"
            if found.others
            else "it is empty"
        )
        raise DataError(
            f"folder {found.folder} holds no image, {what}; put images into it ({', '.join(image_files.FORMATS)}), or "
            "give another"
        )
    return list(found.images)


def _class_of(path: Path, folder: Path) -> int:
    """Return the class of a file below ``folder``/test/, which is its sub-folder's name; DataError outside of these."""
    test, *names = path.relative_to(folder).parts
    if len(names) < 2 or names[0] not in map(str, range(CLASSES)):
        where = f"in a folder named {names[0]!r}" if len(names) > 1 else "in no folder of a class"
        raise DataError(
            f"test image {path} lies {where}; expected {folder / test}/0 to {CLASSES - 1}, named after the digits that "
            f"the images show; move it, or rename {test}/ to train on what is in it"
        )
    return int(names[0])


def _stamps(paths: Iterable[Path]) -> tuple[Stamp, ...]:
    try:
        return tuple((path, (status := path.stat()).st_size, status.st_mtime_ns) for path in paths)
    except OSError as error:
        raise DataError(f"image {error.filename} cannot be read: {error.strerror}; take it away, or mend it") from None


@lru_cache(maxsize=32)
def _load(files: tuple[Stamp, ...]) -> Tensor:
    """Return images uint8 (N, 3, 32, 32); a file that has changed has another stamp and is read again."""
    return image_files.load_image_files([path for path, _, _ in files])
