"""The table of digit domains: description, files, and the reader of the full set.

A new domain is a line in ``DOMAINS``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

SIZE = 32  # pixels a side, for every domain
OPTDIGITS_TRAIN, OPTDIGITS_SEED = 1200, 1797

Part = Literal["train", "test"]


class Arrays(NamedTuple):
    """Content of a file: images (N, H, W) or (N, H, W, 3), and labels (N,) or None."""

    images: Any
    labels: Any | None


@dataclass(frozen=True)
class Domain:
    """Description and location of one domain, and how its full set is read.

    Attributes
    ----------
    shape
        Shape of one stored image, before it becomes (3, 32, 32).
    read_full
        Reader of one part of the full set below a data root.
    full
        Files below a data root, by part; empty for a domain that comes with a library.
    embedded
        True when a small set ships inside the package.
    optional
        True when a data root may lack the folder; the embedded set then takes its place.
    proxy
        Kind of a generated domain, see ``fedlab.data.digits.proxies``; empty for all others.
    """

    description: str
    shape: tuple[int, ...]  # of one stored image, as it is before it becomes (3, 32, 32)
    read_full: Callable[[Path, Part], Arrays]
    full: Mapping[Part, tuple[str, ...]] = field(default_factory=dict)
    embedded: bool = True
    optional: bool = False
    proxy: str = ""


def read_npz(path: Path) -> Arrays:
    """Read images of one npz file, ``x`` or the tiles of the picture ``sheet``, and ``y`` where it is present."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        images = archive["x"] if "x" in archive.files else decode_tiles(archive["sheet"].tobytes())
        return Arrays(images, archive["y"] if "y" in archive.files else None)


def decode_tiles(picture: bytes) -> Any:
    """Decode a WebP or JPEG picture of 32 x 32 tiles, row by row, to uint8 (N, 32, 32, 3)."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))  # (rows * 32, columns * 32, 3)
    rows, columns = pixels.shape[0] // SIZE, pixels.shape[1] // SIZE
    squares = pixels.reshape(rows, SIZE, columns, SIZE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(squares.reshape(-1, SIZE, SIZE, 3))


# torchvision and scikit-learn are imported where they are used: each costs every process a second or two.


def _read_mnist(root: Path, part: Part) -> Arrays:
    from torchvision.datasets import MNIST

    full = MNIST(root, train=part == "train")
    return Arrays(full.data, full.targets)


def _read_usps(root: Path, part: Part) -> Arrays:
    from torchvision.datasets import USPS

    full = USPS(root / "USPS", train=part == "train")
    return Arrays(full.data, full.targets)


def _read_svhn(root: Path, part: Part) -> Arrays:
    from torchvision.datasets import SVHN

    full = SVHN(root / "SVHN", split=part)
    return Arrays(full.data.transpose(0, 2, 3, 1), full.labels)


def _read_optdigits(_: Path, part: Part) -> Arrays:
    package = find_spec("sklearn")  # its file alone: importing scikit-learn takes seconds, in each client
    assert package is not None and package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")  # (1797, 65)
    images, labels = table[:, :-1], table[:, -1].astype(int)  # (1797, 64) in 0..16, (1797,)
    order = np.random.default_rng(OPTDIGITS_SEED).permutation(len(labels))
    chosen = order[:OPTDIGITS_TRAIN] if part == "train" else order[OPTDIGITS_TRAIN:]
    return Arrays(np.rint(images[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels[chosen])


DOMAINS: Mapping[str, Domain] = {
    "mnist": Domain(
        "handwritten digits of US census workers and pupils, gray 28x28",
        (28, 28),
        _read_mnist,
        {
            "train": ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte"),
            "test": ("MNIST/raw/t10k-images-idx3-ubyte", "MNIST/raw/t10k-labels-idx1-ubyte"),
        },
    ),
    "usps": Domain(
        "handwritten digits scanned from US envelopes, gray 16x16",
        (16, 16),
        _read_usps,
        {"train": ("USPS/usps.bz2",), "test": ("USPS/usps.t.bz2",)},
    ),
    "mnist_m": Domain(
        "MNIST digits blended into patches of photographs, color 32x32",
        (32, 32, 3),
        lambda root, part: read_npz(root / "mnist_m" / f"{part}.npz"),
        {"train": ("mnist_m/train.npz",), "test": ("mnist_m/test.npz",)},
    ),
    "optdigits": Domain(
        "handwritten digits of 43 people in Turkey, gray 8x8, from scikit-learn",
        (8, 8),
        _read_optdigits,
        embedded=False,
    ),
    "synthdigits": Domain(
        "digits drawn with many fonts on varied backgrounds, color 32x32, fedlab's own",
        (32, 32, 3),
        lambda root, part: read_npz(root / "synthdigits" / f"{part}.npz"),
        {"train": ("synthdigits/train.npz",), "test": ("synthdigits/test.npz",)},
        optional=True,
    ),
    "svhn": Domain(
        "house numbers in Street View photographs, color 32x32, full set only",
        (32, 32, 3),
        _read_svhn,
        {"train": ("SVHN/train_32x32.mat",), "test": ("SVHN/test_32x32.mat",)},
        embedded=False,
    ),
    "proxy_texture": Domain("MNIST's test digits on textures, to tune on", (28, 28), _read_mnist, proxy="texture"),
    "proxy_lowres": Domain("MNIST's test digits shown in 8x8, to tune on", (28, 28), _read_mnist, proxy="lowres"),
    "proxy_tight": Domain("MNIST's test digits cropped, in 12x12, to tune on", (28, 28), _read_mnist, proxy="tight"),
    "proxy_color": Domain("MNIST's test digits moved and colored, to tune on", (28, 28), _read_mnist, proxy="color"),
}

PROXY_SOURCE: tuple[str, Part] = ("mnist", "test")  # no split that anything is trained on
