"""CamVid: video frames of Cambridge streets with a class for every pixel, by the drive that they were filmed on.

:func:`load_drive` is the whole interface: a domain, a split, and the folder of the full set, or None for the one in the
package.

=====  ======================================================================  ==========================
split  frames                                                                  columns
=====  ======================================================================  ==========================
train  a target: the first half of the drive but for its last ``GAP`` frames   x; y with ``with_labels``
test   the second half of the drive                                            x, y
all    a source: the whole drive                                               x, y
=====  ======================================================================  ==========================

**Splits are by time.** Frames of a drive follow one another at one second, successive ones look alike, and a waiting
car sees the same for many seconds. So a drive is split in two, and ``GAP`` seconds before the boundary are left out.
For the dusk drive the boundary is that of the published lists: their training frames are its first 62, their test
frames its last 62.

A domain ``dark_...`` is a day drive darkened to look like dusk (:func:`darken`): a target to tune on, whose labels are
a source's.

**Source**: Brostow, Fauqueur, Cipolla, Semantic Object Classes in Video, Pattern Recognition Letters 2009; the 11
classes, 360 x 480 pixels and lists of Badrinarayanan et al., SegNet, PAMI 2017, reduced to 120 x 160.

**Departures**: (1) frames are reduced again to 60 x 80, colors averaged and labels taken at every second pixel; in the
package as JPEG of quality 90. (2) The file has no names: drives are told apart by the order of the published lists,
where the boundary between two drives is the largest jump between successive frames.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedlab.data.dataset import ArrayDataset
from fedlab.data.digits.datasets import EMBEDDED, unset_root
from fedlab.data.pixels import to_float
from fedlab.data.sources import PACKAGE, DataSource
from fedlab.errors import DataError, suggest

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
# Fractions of the classes in the pixels of day_0006R0 and day_0016E5, those without a class left out.
FREQUENCIES = (0.1729, 0.2312, 0.0104, 0.3509, 0.0467, 0.0985, 0.0123, 0.0132, 0.0548, 0.0066, 0.0025)
IGNORE_INDEX = -100  # what torch's cross-entropy leaves out; 11 in the files
GAP = 8  # frames, that is seconds, between a drive's two halves
FULL_FILE, FULL_SHAPE = "camvid/camvid_160x120.npz", (120, 160)
EMBEDDED_FILE, EMBEDDED_SHAPE = "camvid.npz", (60, 80)
LIST_LENGTHS: Mapping[str, int] = {"train": 367, "val": 101, "test": 233}  # the published lists and their lengths
SPLITS = ("train", "test", "all")

Pieces = tuple[tuple[str, slice], ...]


@dataclass(frozen=True)
class DriveSequence:
    """Position of a drive's frames in the published lists, in the order of time; ``dark`` frames are darkened."""

    description: str
    pieces: Pieces
    dark: bool = False


DRIVES: Mapping[str, DriveSequence] = {
    "day_0006R0": DriveSequence("a ring road and a car park by day, 101 frames", (("train", slice(62, 163)),)),
    "day_0016E5": DriveSequence("the town by day, 204 frames", (("train", slice(163, 367)),)),
    "day_05VD": DriveSequence("another part of the town by day, 171 frames", (("test", slice(62, 233)),)),
    "dusk": DriveSequence("0001TP, the town at dusk, 124 frames", (("train", slice(0, 62)), ("test", slice(0, 62)))),
    "dark_0006R0": DriveSequence("day_0006R0 darkened, to tune on", (("train", slice(62, 163)),), dark=True),
    "dark_0016E5": DriveSequence("day_0016E5 darkened, to tune on", (("train", slice(163, 367)),), dark=True),
}
HELD_OUT = "held_out"
VALIDATION = DriveSequence(
    "the published validation frames: 0016E5 at another time, fifteen a second", (("val", slice(None)),)
)


class Frames(NamedTuple):
    """x : (N, 3, height, width) uint8; y : (N, height, width) int64, ``IGNORE_INDEX`` where unlabeled; read-only."""

    x: Tensor
    y: Tensor


def load_drive(
    domain: str, split: str, root: Path | None = None, *, reduce: int = 2, with_labels: bool = False
) -> ArrayDataset:
    """Return the frames of one drive and split, in the order of time.

    Parameters
    ----------
    domain
        A key of ``DRIVES``; or ``HELD_OUT``, day frames of another time that belong to no drive, the same for each
        split.
    split
        One of ``SPLITS``, see the table above.
    root
        Folder that holds ``camvid/``; None, or one without it, reads the set inside the package.
    reduce
        Factor by which the file's 120 x 160 pixels are reduced, 1 or 2; the set inside the package has 60 x 80.
    with_labels
        Give labels of the split "train" as well: for supervised upper bounds of a target only.

    Returns
    -------
    ArrayDataset
        x : (N, 3, height, width), float32 in [-1, 1] once indexed, uint8 in ``columns``; y : (N, height, width), int64
        in 0..10 and ``IGNORE_INDEX``, see the table above.

    Raises
    ------
    DataError
        For an unknown name, or a file that is missing or damaged.
    """
    if domain not in DRIVES and domain != HELD_OUT:
        raise DataError(f"no drive {domain!r} in CamVid; {suggest(domain, DRIVES)}")
    if split not in SPLITS:
        raise DataError(f"no split {split!r}; {suggest(split, SPLITS)}")
    drive = DRIVES.get(domain, VALIDATION)
    lists = _lists(root, reduce)
    x = torch.cat([lists[name].x[part] for name, part in drive.pieces])
    y = torch.cat([lists[name].y[part] for name, part in drive.pieces])
    half = len(x) // 2
    rows = {"all": slice(None), "test": slice(half, None)}.get(split, slice(half - GAP))
    if domain == HELD_OUT:
        rows = slice(None)
    x = darken(x[rows]) if drive.dark else x[rows]
    if split == "train" and not with_labels:
        return ArrayDataset({"x": x}, to_float)
    return ArrayDataset({"x": x, "y": y[rows]}, to_float)


def drive_source(domain: str, root: Path | None, examples: int) -> DataSource:
    """Return where a drive is read from, of which a run takes so many views; the package has all, reduced."""
    full = root / FULL_FILE if root else None
    return DataSource(domain, examples, str(full.parent) if full and full.is_file() else PACKAGE)


def darken(x: Tensor) -> Tensor:
    """Return day frames (N, 3, height, width) uint8 as if at dusk.

    A gamma of 1.8, then factors 0.62, 0.70, 0.72 of red, green and blue. The numbers bring the mean color of the day
    drives near that of the dusk drive's unlabeled training frames.
    """
    gains = torch.tensor((0.62, 0.70, 0.72))[:, None, None]
    return (255 * gains * (x.float() / 255) ** 1.8).round().byte()


def _lists(root: Path | None, reduce: int) -> Mapping[str, Frames]:
    """Return the three published lists, at the given reduction."""
    full = root / FULL_FILE if root else None
    if full is not None and full.is_file():
        return _full(full, reduce)
    if reduce != 2:
        raise DataError(
            f"CamVid at {FULL_SHAPE[0]} x {FULL_SHAPE[1]} pixels does not ship with fedlab: expected "
            f"{full or 'FOLDER/' + FULL_FILE}; set data.root or "
            "FEDLAB_DATA to its folder, or take the reduced frames, which do"
        )
    return _embedded(EMBEDDED / EMBEDDED_FILE)


@lru_cache(maxsize=2)
def _full(path: Path, reduce: int) -> Mapping[str, Frames]:
    """Return the frames of the full file, which is lossless."""
    found: dict[str, Frames] = {}
    remedy = f"replace the file, or {unset_root(path)}"
    archive = _load(path, remedy)
    for name, count in LIST_LENGTHS.items():
        x, y = _column(archive, f"x_{name}", path, remedy), _column(archive, f"y_{name}", path, remedy)
        _check(path, remedy, f"x_{name}", x, (count, *FULL_SHAPE, 3))
        _check(path, remedy, f"y_{name}", y, (count, *FULL_SHAPE))
        found[name] = Frames(_planes(downsample(x, reduce)), _labels(y[:, ::reduce, ::reduce], path, remedy))
    return found


@lru_cache(maxsize=2)
def _embedded(path: Path) -> Mapping[str, Frames]:
    """Return the frames inside the package: concatenated JPEG files ``buf``, their bounds ``off``, and ``y``."""
    remedy, count = "the package is damaged, reinstall fedlab", sum(LIST_LENGTHS.values())
    archive = _load(path, remedy)
    buffer, offsets, y = (_column(archive, name, path, remedy) for name in ("buf", "off", "y"))
    try:
        files = [buffer[start:end].tobytes() for start, end in pairwise(offsets)]
        x = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    except Exception as error:  # a damaged picture can fail in nearly any way; the cause stays attached
        raise DataError(f"{path} cannot be read ({error}); {remedy}") from error
    _check(path, remedy, "buf", x, (count, *EMBEDDED_SHAPE, 3))
    _check(path, remedy, "y", y, (count, *EMBEDDED_SHAPE))
    frames, found, start = Frames(_planes(x), _labels(y, path, remedy)), {}, 0
    for name, length in LIST_LENGTHS.items():
        found[name] = Frames(frames.x[start : start + length], frames.y[start : start + length])
        start += length
    return found


def _load(path: Path, remedy: str) -> Mapping[str, Any]:
    if not path.is_file():
        raise DataError(f"CamVid: expected {path}, found no such file; {remedy}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # as above
        raise DataError(f"{path} cannot be read ({error or type(error).__name__}); {remedy}") from error


def _column(archive: Mapping[str, Any], name: str, path: Path, remedy: str) -> Any:
    if name not in archive:
        raise DataError(f"{path} holds {', '.join(archive) or 'nothing'}, expected {name!r}; {remedy}")
    return archive[name]


def _check(path: Path, remedy: str, name: str, array: Any, shape: tuple[int, ...]) -> None:
    if array.dtype != np.uint8 or array.shape != shape:
        raise DataError(f"{path}: {name!r} is {array.dtype} {array.shape}, expected uint8 {shape}; {remedy}")


def downsample(x: Any, factor: int) -> Any:
    """Return (N, height, width, 3) uint8 averaged over squares of ``factor`` pixels a side."""
    count, height, width, _ = x.shape
    blocks = x.reshape(count, height // factor, factor, width // factor, factor, 3)
    return np.rint(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def _planes(x: Any) -> Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def _labels(y: Any, path: Path, remedy: str) -> Tensor:
    """Return int64 labels with ``IGNORE_INDEX`` for the file's 11; DataError for anything above."""
    if y.max() > len(CLASSES):
        raise DataError(f"{path} holds labels up to {y.max()}, expected 0..{len(CLASSES)}; {remedy}")
    labels = torch.from_numpy(y.astype(np.int64))
    return labels.masked_fill(labels == len(CLASSES), IGNORE_INDEX)
