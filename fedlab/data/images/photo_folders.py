"""Folders of photographs: which files there are, what each holds, and which class its sub-folder names.

::

    FOLDER/CLASS/**        images with a class: a server's, or a client's to test on
    FOLDER/**              a client's images without labels, in sub-folders of any names
    FOLDER/test/CLASS/**   a client's images to test on, which it does not train on

Every file is read once and examined (:mod:`fedlab.data.images.photo_files`), in worker processes where there are many;
what was found is remembered in the user's cache folder by path, size and time of change. Files that cannot be used are
skipped, counted in a warning, and all listed in a file there. Which files are found is in
:mod:`fedlab.data.digits.folder_files`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import joblib

from fedlab.data.cache import cache_folder, cache_key, try_write
from fedlab.data.digits import folder_files
from fedlab.data.digits.folder_files import SkippedFilesWarning
from fedlab.data.images import photo_files
from fedlab.errors import DataError, plural

PARALLEL_FILES = 64  # files from which worker processes are worth it
CHUNK_FILES = 32  # files a task
MAX_LISTED = 3  # skipped files in a message

Stamp = tuple[str, int, int]  # a file, its bytes, and when it was changed in nanoseconds


@dataclass(frozen=True)
class Photo:
    """One image file.

    Attributes
    ----------
    path
        The file.
    parts
        Names of the sub-folders between the folder and the file.
    sha256
        Of its content.
    """

    path: Path
    parts: tuple[str, ...]
    sha256: str


def find_photos(folder: Path) -> tuple[Photo, ...]:
    """Return the usable images below a folder, sorted by path; those that are skipped are listed in a warning.

    Raises
    ------
    DataError
        When it is no folder, cannot be listed, or holds no usable image.
    """
    found = folder_files.list_folder(folder, folder_files.find_test_folder(folder))
    return _photos(folder, tuple(_stamp(path) for path in sorted((*found.images, *found.others))))


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the sub-folders of a folder, sorted; hidden ones do not count.

    Raises
    ------
    DataError
        When it is no folder.
    """
    try:
        return tuple(
            sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        )
    except OSError as error:
        raise DataError(f"folder {folder} cannot be listed: {error.strerror}; name a folder of images") from None


def run_parallel(task: object, items: Sequence[object]) -> list[object]:
    """Return ``task(item)`` of each item in order, by worker processes where there are many items.

    Raises
    ------
    DataError
        When a worker process dies, as a decoder may that is given a malicious file.
    """
    jobs = -1 if len(items) >= PARALLEL_FILES else 1
    chunks = [items[start : start + CHUNK_FILES] for start in range(0, len(items), CHUNK_FILES)]
    try:
        parts = joblib.Parallel(n_jobs=jobs)(joblib.delayed(_each)(task, chunk) for chunk in chunks)
    except joblib.externals.loky.process_executor.TerminatedWorkerError:
        raise DataError(
            f"a process that decodes images ended, out of memory or by a file that its decoder cannot bear, among "
            f"{plural(len(items), 'file')}; take away what is no photograph"
        ) from None
    return [result for part in parts for result in part]


def _each(task: object, items: Sequence[object]) -> list[object]:
    assert callable(task)
    return [task(item) for item in items]


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:  # a link that leads nowhere; examining it tells why
        return str(path), -1, -1
    return str(path), status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _photos(folder: Path, stamps: tuple[Stamp, ...]) -> tuple[Photo, ...]:
    """Return the usable files; once a process for the same files, so each list of skipped ones is given once."""
    found = _examined(folder, stamps)
    skipped = [(stamp[0], reason) for stamp, (_, reason) in zip(stamps, found, strict=True) if reason]
    if skipped:
        _warn(folder, len(stamps), skipped)
    photos = tuple(
        Photo(Path(stamp[0]), Path(stamp[0]).relative_to(folder).parts[:-1], sha256)
        for stamp, (sha256, reason) in zip(stamps, found, strict=True)
        if not reason
    )
    if not photos:
        why = f": {skipped[0][0]}, {skipped[0][1]}" if skipped else ""
        raise DataError(f"folder {folder} holds no image that can be used{why}; put photographs into it")
    return photos


def _examined(folder: Path, stamps: tuple[Stamp, ...]) -> list[tuple[str, str]]:
    """Return SHA-256 and reason of each file; those that have not changed are known from the last time."""
    memory = cache_folder("images") / "examined" / f"{cache_key(str(folder.resolve()))}.json"
    known = _recall(memory)
    new = [stamp for stamp in stamps if stamp not in known]
    if new:
        paths = [Path(path) for path, _, _ in new]
        answers = run_parallel(photo_files.examine, paths)
        known.update(zip(new, answers, strict=True))  # type: ignore[arg-type]
        kept = [[*stamp, *known[stamp]] for stamp in stamps]
        try_write(memory, json.dumps(kept).encode())
    return [known[stamp] for stamp in stamps]


def _recall(path: Path) -> dict[Stamp, tuple[str, str]]:
    """Return what was found of files last time; nothing where that is missing or damaged."""
    try:
        rows = json.loads(path.read_bytes())
        return {(str(name), int(size), int(time)): (str(sha), str(why)) for name, size, time, sha, why in rows}
    except (OSError, ValueError, TypeError):
        return {}


def _warn(folder: Path, total: int, skipped: Sequence[tuple[str, str]]) -> None:
    """Write the list of skipped files, and warn."""
    table = "file\treason\n" + "".join(f"{name}\t{reason}\n" for name, reason in skipped)
    aside = cache_folder("images") / "skipped" / f"{folder.name}-{cache_key(table)}.tsv"
    where = f"all of them in {aside}" if try_write(aside, table.encode()) else f"{aside} could not be written"
    some = "; ".join(f"{name}: {reason}" for name, reason in skipped[:MAX_LISTED])
    warnings.warn(
        f"{len(skipped):,} of {plural(total, 'file')} of {folder} are not used: {some}; {where}",
        SkippedFilesWarning,
        stacklevel=4,
    )
