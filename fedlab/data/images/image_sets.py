"""Image sets with classes, for transfer from a labeled base set to a very different target set with new classes.

:func:`load_image_set` gives one set, :func:`split_unlabeled` splits a target into the part that a client trains on
without labels and the part that episodes are drawn from. A new set is a line in ``IMAGE_SETS``.

Every digit domain of ``fedlab.data.digits.domains`` is a set too: its train part, which ships without labels, has label
-1 here and can only become the unlabeled part.

**Omniglot** is drawn in black on white; here it is white on black, as digits are, and each drawing is scaled to the
brightest gray: the polarity of ink is no part of the shift between the two. Two alphabets, Tagalog and Early Aramaic,
are kept out of the base: ``omniglot_heldout`` and its shifted copies are targets to tune on without looking at any
other.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from fedlab.data.digits import datasets, proxies
from fedlab.data.digits.domains import DOMAINS, SIZE
from fedlab.data.sources import PACKAGE, DataSource
from fedlab.errors import DataError, suggest
from fedlab.seeds import seeded

UNKNOWN = -1  # label of an image that ships without one
OMNIGLOT = "omniglot.npz"
HELD_OUT = ("Early_Aramaic", "Tagalog")
CIFAR10 = ("cifar10/{}_jpeg.npz", "cifar-10-batches-py")
SPLIT_SEED = 2010  # one cut for all runs, as the paper's lists of files are


@dataclass(frozen=True)
class LabeledImages:
    """x : (N, channels, size, size) uint8; y : (N,) int64, ``UNKNOWN`` where no label ships; shared, read-only."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class ImageSet:
    """Description of a set, and how it is read.

    Attributes
    ----------
    read, validation
        Readers below a data root of the set, and of images of the same classes that are never trained on, if any.
    needs
        Files below the data root; empty for sets inside the package.
    instead
        A folder below the data root that serves as well.
    """

    description: str
    read: Callable[[Path | None], LabeledImages]
    validation: Callable[[Path | None], LabeledImages] | None = None
    needs: tuple[str, ...] = field(default=())  # files below the data root; none: inside the package
    instead: str = ""  # a folder below the data root that serves as well


def load_image_set(name: str, root: Path | None, validation: bool = False, size: int = 0) -> LabeledImages:
    """Return one set, or its validation part, read once a process.

    Parameters
    ----------
    name
        A key of ``IMAGE_SETS``.
    root
        Folder of the full sets; None reads those inside the package.
    validation
        Read the validation part.
    size
        Pixels a side, resized bilinearly with antialiasing; 0 keeps the set's own size.

    Raises
    ------
    DataError
        For an unknown name, a set that has no validation part, or files that are missing or damaged.
    """
    return _read(name, root, validation, size)


@lru_cache(maxsize=16)  # which takes an argument that is left out for another one than its default
def _read(name: str, root: Path | None, validation: bool, size: int) -> LabeledImages:
    if name not in IMAGE_SETS:
        raise DataError(f"no set of images {name!r}; {suggest(name, IMAGE_SETS)}")
    entry = IMAGE_SETS[name]
    reader = entry.validation if validation else entry.read
    if reader is None:
        raise DataError(f"{name} has no validation part, so it can be a target and no base")
    for file in entry.needs:
        if root and entry.instead and (root / entry.instead).is_dir():
            break
        if root is None or not (root / file).is_file():
            where = root / file if root else f"FOLDER/{file}"
            where = f"{where}, or torchvision's {entry.instead}/ beside its folder" if entry.instead else where
            raise DataError(f"{name} does not ship with fedlab: expected {where}; set data.root or FEDLAB_DATA")
    try:
        return resize(reader(root), size) if size else reader(root)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{name} cannot be read ({error}); replace its files below {root or datasets.EMBEDDED}"
        ) from error


def image_source(name: str, root: Path | None, examples: int) -> DataSource:
    """Return where a set is read from, of which a run takes so many images.

    Raises
    ------
    DataError
        When a digit domain is not there, see :func:`fedlab.data.digits.datasets.files`.
    """
    if name in DOMAINS:
        return datasets.digit_source(name, root, examples)
    return DataSource(name, examples, str(root) if root and IMAGE_SETS[name].needs else PACKAGE)


def split_unlabeled(y: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return row numbers of the unlabeled part and of the part for episodes, disjoint and independent of a run's seed.

    Parameters
    ----------
    y
        Labels (N,). Rows without a label can only be unlabeled, and where there are such rows no other is taken.
    fraction
        Fraction of the unlabeled part in both together, in (0, 1); the published one is 0.2.

    Returns
    -------
    Tensor, Tensor
        Both sorted, int64.
    """
    labeled, bare = (y != UNKNOWN).nonzero()[:, 0], (y == UNKNOWN).nonzero()[:, 0]
    with seeded("unlabelled part", SPLIT_SEED):
        if len(bare):
            wanted = round(len(labeled) * fraction / (1 - fraction))
            return bare[torch.randperm(len(bare))[:wanted]].sort().values, labeled
        order = torch.randperm(len(y))
    cut = round(len(y) * fraction)
    return order[:cut].sort().values, order[cut:].sort().values


def resize(images: LabeledImages, size: int) -> LabeledImages:
    """Return images resized to ``size`` pixels a side, bilinearly with antialiasing."""
    if images.x.shape[-1] == size:
        return images
    parts = [
        interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for part in torch.split(images.x, 1000)
    ]
    return LabeledImages(torch.cat(parts), images.y)


def _read_jpegs(path: Path) -> LabeledImages:
    """Read a file of concatenated JPEG pictures: ``buf``, ``off`` (bounds of each) and ``y``."""
    with np.load(path, allow_pickle=False) as archive:
        buffer, offsets, labels = archive["buf"], archive["off"], archive["y"]
    pictures = [
        np.asarray(Image.open(io.BytesIO(buffer[start:end].tobytes())).convert("RGB"))
        for start, end in pairwise(offsets)
    ]
    return LabeledImages(_planes(np.stack(pictures)), torch.from_numpy(labels.astype(np.int64)))


def _cifar10(train: bool, root: Path | None) -> LabeledImages:
    """Read torchvision's files where they are present, else a file of JPEG pictures."""
    folder = root or Path()
    if not (folder / CIFAR10[1]).is_dir():
        return _read_jpegs(folder / CIFAR10[0].format("train" if train else "test"))
    from torchvision.datasets import CIFAR10 as Published  # late, it costs a second

    whole = Published(folder, train=train)
    return LabeledImages(_planes(whole.data), torch.tensor(whole.targets))


def _planes(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()  # (N, 3, size, size)


def jpeg_reader(file: str) -> Callable[[Path | None], LabeledImages]:
    """Return a reader of one file of JPEG pictures below the data root."""
    return lambda root: _read_jpegs((root or Path()) / file)


@lru_cache(maxsize=1)
def _omniglot() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Return drawings (N, 28, 28), characters (N,), held-out flags (N,), and the drawer's number from 1 (N,)."""
    with np.load(datasets.EMBEDDED / OMNIGLOT, allow_pickle=False) as archive:
        alphabets, alphabet = archive["alphabets"], archive["alphabet"]
        held_out = np.isin(alphabets, HELD_OUT)[alphabet]
        return archive["x"], archive["y"].astype(np.int64), held_out, archive["drawer"].astype(np.int64)


VALIDATION_DRAWERS = 16  # later ones of the 20 are for validation


def _characters(held_out: bool, drawers: range, kind: str = "") -> LabeledImages:
    x, y, apart, drawer = _omniglot()
    rows = (apart == held_out) & np.isin(drawer, drawers)
    labels = torch.from_numpy(np.unique(y[rows], return_inverse=True)[1].astype(np.int64))
    if kind:
        return LabeledImages(_planes(proxies.make_proxy(x[rows], kind, SPLIT_SEED)), labels)
    margin = (SIZE - x.shape[-1]) // 2
    return LabeledImages(pad(torch.from_numpy(x[rows])[:, None], [margin] * 4), labels)  # (N, 1, 32, 32)


def _shifted(kind: str, _: Path | None) -> LabeledImages:
    return _characters(True, ALL, kind)


def _digits(domain: str) -> Callable[[Path | None], LabeledImages]:
    def reader(root: Path | None) -> LabeledImages:
        bare, test = datasets.load_digits(domain, "train", root), datasets.load_digits(domain, "test", root)
        x = torch.cat([bare.columns["x"], test.columns["x"]])
        if len(DOMAINS[domain].shape) == 2 and not DOMAINS[domain].proxy:
            x = x[:, :1]  # gray, stored once
        return LabeledImages(x, torch.cat([torch.full((len(bare),), UNKNOWN), test.columns["y"]]))

    return reader


FIRST, LAST, ALL = range(1, VALIDATION_DRAWERS + 1), range(VALIDATION_DRAWERS + 1, 21), range(1, 21)

IMAGE_SETS: Mapping[str, ImageSet] = {
    "omniglot": ImageSet(
        "handwritten characters of six alphabets, 203 classes of 20 drawings, gray 32x32",
        lambda _: _characters(False, FIRST),
        lambda _: _characters(False, LAST),
    ),
    "omniglot_heldout": ImageSet(
        "two more alphabets, 39 classes: a target to tune on", lambda _: _characters(True, ALL)
    ),
    **{
        f"omniglot_{kind}": ImageSet(f"the same 39 characters bent by proxy {kind!r}", partial(_shifted, kind))
        for kind in ("texture", "color")
    },
    **{name: ImageSet(domain.description, _digits(name)) for name, domain in DOMAINS.items()},
    "tiny_imagenet": ImageSet(
        "64 classes of Tiny-ImageNet, color 64x64",
        jpeg_reader("tiny_imagenet/base64_train.npz"),
        jpeg_reader("tiny_imagenet/base64_val.npz"),
        ("tiny_imagenet/base64_train.npz", "tiny_imagenet/base64_val.npz"),
    ),
    "cifar10": ImageSet(
        "ten classes of things and animals, 50,000 / 10,000, color 32x32",
        partial(_cifar10, True),
        partial(_cifar10, False),
        (CIFAR10[0].format("train"), CIFAR10[0].format("test")),
        CIFAR10[1],
    ),
    "eurosat": ImageSet(
        "land use seen by Sentinel-2, 10 classes, color 64x64",
        jpeg_reader("eurosat/eurosat_64.npz"),
        needs=("eurosat/eurosat_64.npz",),
    ),
    "plantvillage": ImageSet(
        "leaves and their diseases, 15 classes, color 64x64",
        jpeg_reader("plantvillage/plantvillage15_64.npz"),
        needs=("plantvillage/plantvillage15_64.npz",),
    ),
}
