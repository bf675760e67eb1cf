"""The files of a folder of images: links followed, nothing read twice, and what is left out counted.

Names that begin with a dot, and ``CLUTTER``, are left out without a word.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fedlab.data.digits import image_files
from fedlab.errors import DataError, FedlabWarning, os_error_sentence, plural

TEST = "test"  # name of the sub-folder with labels, in letters of any case
MAX_KINDS = 5  # endings that a message names
CLUTTER = ("thumbs.db", "desktop.ini")  # of a desktop's own


class SkippedFilesWarning(FedlabWarning):
    """Warning that files of a folder of images were not used."""


@dataclass(frozen=True)
class FolderFiles:
    """Files of one folder and all below it, sorted by path."""

    folder: Path
    images: tuple[Path, ...]
    others: tuple[Path, ...]  # files that are no images by their names, and links that lead nowhere

    def skipped(self) -> str:
        """Return how many files are left out, with their kinds; empty where none is."""
        if not self.others:
            return ""
        kinds = Counter(path.suffix.lower() or path.name for path in self.others)
        named = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
        text = ", ".join(f"{kinds[kind]:,} {kind}" for kind in named[:MAX_KINDS])
        return text + (f" and {len(named) - MAX_KINDS} kinds more" if len(named) > MAX_KINDS else "")

    def warn(self) -> None:
        """Warn of files that are left out.

        Warns
        -----
        SkippedFilesWarning
            When there are some.
        """
        if skipped := self.skipped():
            warnings.warn(
                f"{len(self.others):,} of {plural(len(self.others) + len(self.images), 'file')} of {self.folder} "
                "are not used "
                f"({skipped}), the first is {self.others[0].relative_to(self.folder)}; images "
                f"are {', '.join(image_files.FORMATS)}",
                SkippedFilesWarning,
                stacklevel=2,
            )


def list_folder(folder: Path, first: str = "") -> FolderFiles:
    """Return the files below a folder; links to folders are followed, and each folder is read once.

    Parameters
    ----------
    first
        Sub-folder that is read first: a folder that is found in it and elsewhere, through a link, is found in it.

    Raises
    ------
    DataError
        When ``folder`` is no folder, or something below it cannot be listed.
    """
    if not folder.is_dir():
        what = "is a file and no folder" if folder.exists() else "is not there"
        raise DataError(f"folder of images {folder} {what}; give a folder that holds images")
    seen: set[tuple[int, int]] = set()
    files: list[Path] = []
    try:
        for top in (*([folder / first] if first else []), folder):
            tops = [top]
            while tops:  # links come after all that is there without them, so that they only add
                tops = [link for top in sorted(tops) for link in _walk(top, seen, files)]
    except OSError as error:
        raise DataError(f"folder of images {error.filename} cannot be listed: {os_error_sentence(error)}") from None
    names = sorted(path for path in files if path.name.lower() not in CLUTTER)
    images = tuple(filter(_is_image, names))
    return FolderFiles(folder, images, tuple(path for path in names if not _is_image(path)))


def find_test_folder(folder: Path) -> str:
    """Return the name of the sub-folder of test images, in letters of any case; empty where there is none.

    Raises
    ------
    DataError
        When there are two.
    """
    entries = folder.iterdir() if folder.is_dir() else ()
    names = sorted(path.name for path in entries if path.name.lower() == TEST and path.is_dir())
    if len(names) > 1:
        raise DataError(f"{folder} has {len(names)} folders of test images, {' and '.join(names)}; make them one")
    return names[0] if names else ""


def _walk(top: Path, seen: set[tuple[int, int]], files: list[Path]) -> list[Path]:
    """Add the files below a folder whose identity is not in ``seen``, and return the links to folders there."""
    links: list[Path] = []
    pending = [top]
    while pending:
        parent = pending.pop()
        status = parent.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(parent) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                kind = files if not entry.is_dir() else links if entry.is_symlink() else pending
                kind.append(parent / entry.name)
    return links


def _is_image(path: Path) -> bool:
    """Return True for the name of an image that is a file, or a link to nothing, which is refused when it is read."""
    return image_files.is_image_file(path) and (path.is_file() or not path.exists())
