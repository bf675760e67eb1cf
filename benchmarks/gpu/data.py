"""Write a small data folder for a machine without the full sets: parts of each, in the formats that are read anyway.

    python -m benchmarks.gpu.data --root $FEDLAB_DATA --out DIR
    python -m benchmarks.gpu.data --root $FEDLAB_DATA --out DIR --sets molecules cifar10 --images 20000

QM9 is parsed here, for both orders of atoms, which takes minutes of a processor: ``DIR/cache`` holds what comes of it,
and ``python -m benchmarks.gpu`` looks there. It is of use where RDKit has the same version.

Sets that fedlab brings along need no file: a data folder without them reads those in the package, and says so.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from fedlab.data.digits.domains import SIZE, read_npz
from fedlab.data.molecules import graphs, smiles

CACHE = "cache"  # folder of what is computed of the others
IMAGES, DIGITS = 50_000, 10_000  # of a training set, at most; of a test set a fifth
Sizes = tuple[int, int]  # of the training and of the test part


def copy_molecules(root: Path, out: Path, sizes: Sizes) -> None:
    """Copy QM9's and ZINC's files of SMILES, and keep QM9 parsed in the folder's cache."""
    (out / "molecules").mkdir(parents=True, exist_ok=True)
    for file in smiles.FILES.values():
        shutil.copyfile(root / "molecules" / file, out / "molecules" / file)
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str((out / CACHE).resolve())
    try:
        for order in get_args(smiles.AtomOrder):
            smiles.load_molecules(smiles.molecule_file("qm9", "train", out), graphs.QM9, order=order)
    finally:
        del os.environ["XDG_CACHE_HOME"]
        os.environ.update({"XDG_CACHE_HOME": before} if before else {})


def first_pictures(file: str, place: int) -> Callable[[Path, Path, Sizes], None]:
    """Return a writer of the first pictures of each class of a file of JPEG pictures."""

    def write(root: Path, out: Path, sizes: Sizes) -> None:
        with np.load(root / file) as archive:
            found = dict(archive)
        found["buf"], found["off"], found["y"] = some_of_each_class(found, sizes[place])
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out / file, **found)

    return write


def some_of_each_class(pictures: Mapping[str, Any], count: int) -> tuple[Any, Any, Any]:
    """Return buffer, bounds and labels of ``count`` pictures at most, as many of each class."""
    y, bounds = pictures["y"], pictures["off"]
    classes = np.unique(y)
    each = count // len(classes)
    rows = np.sort(np.concatenate([np.flatnonzero(y == label)[:each] for label in classes]))
    lengths = np.diff(bounds)[rows]
    buffer = np.concatenate([pictures["buf"][bounds[row] : bounds[row + 1]] for row in rows])
    return buffer, np.concatenate([[0], np.cumsum(lengths)]).astype(bounds.dtype), y[rows]


def first_mnist(root: Path, out: Path, sizes: Sizes) -> None:
    """Write the first images of MNIST's files, with their counts in the headers."""
    for name, count in (("train", sizes[0]), ("t10k", sizes[1])):
        for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
            source = root / f"MNIST/raw/{name}-{kind}-ubyte"
            content = source.read_bytes()
            total = struct.unpack(">i", content[4:8])[0]
            kept = min(count, total)
            each = (len(content) - header) // total
            target = out / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(
                content[:4] + struct.pack(">i", kept) + content[8:header] + content[header : header + kept * each]
            )


def copy_usps(root: Path, out: Path, sizes: Sizes) -> None:
    """Copy the files of USPS, which has 7,291 images."""
    (out / "USPS").mkdir(parents=True, exist_ok=True)
    for file in (root / "USPS").iterdir():
        shutil.copyfile(file, out / "USPS" / file.name)


def first_mnist_m(root: Path, out: Path, sizes: Sizes) -> None:
    """Write the first images of MNIST-M as one WebP picture of tiles, as the set in the package is."""
    (out / "mnist_m").mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "test"), sizes, strict=True):
        found = read_npz(root / f"mnist_m/{part}.npz")
        picture = io.BytesIO()
        Image.fromarray(tiles(found.images[:count])).save(picture, "WEBP", quality=80, method=4)
        sheet = np.frombuffer(picture.getvalue(), np.uint8)
        labels = {} if found.labels is None else {"y": found.labels[:count]}
        np.savez(out / f"mnist_m/{part}.npz", sheet=sheet, **labels)


def tiles(images: Any) -> Any:
    """Return one picture (rows * 32, columns * 32, 3) of images (N, 32, 32, 3), whose rows it fills.

    Raises
    ------
    ValueError
        When no two numbers multiply to N, as the reader takes each tile for an image.
    """
    count = len(images)
    columns = next(number for number in range(math.isqrt(count), 0, -1) if count % number == 0)
    if count // columns * SIZE > 16_383:
        raise ValueError(f"{count} images make no picture that WebP can hold; take a round number")
    grid = images.reshape(count // columns, columns, SIZE, SIZE, 3)
    return np.ascontiguousarray(grid.transpose(0, 2, 1, 3, 4).reshape(-1, columns * SIZE, 3))


WRITERS: Mapping[str, tuple[Callable[[Path, Path, Sizes], None], ...]] = {
    "molecules": (copy_molecules,),
    "mnist": (first_mnist,),
    "usps": (copy_usps,),
    "mnist_m": (first_mnist_m,),
    "cifar10": (first_pictures("cifar10/train_jpeg.npz", 0), first_pictures("cifar10/test_jpeg.npz", 1)),
    "tiny_imagenet": (
        first_pictures("tiny_imagenet/base64_train.npz", 0),
        first_pictures("tiny_imagenet/base64_val.npz", 1),
    ),
    "eurosat": (first_pictures("eurosat/eurosat_64.npz", 0),),
    "plantvillage": (first_pictures("plantvillage/plantvillage15_64.npz", 0),),
}
DIGIT_SETS = ("mnist", "usps", "mnist_m")
USUAL = ("molecules", "cifar10", *DIGIT_SETS)


def main() -> None:
    """Write the folder and print its size."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu.data",
        description=(__doc__ or "").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the full sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--sets", nargs="+", choices=list(WRITERS), default=list(USUAL), metavar="SET")
    parser.add_argument("--images", type=int, default=IMAGES, help="training images of a set of photographs, at most")
    parser.add_argument("--digits", type=int, default=DIGITS, help="training images of a set of digits, at most")
    asked = parser.parse_args()
    for name in asked.sets:
        count = asked.digits if name in DIGIT_SETS else asked.images
        for write in WRITERS[name]:
            write(asked.root, asked.out, (count, count // 5))
    size = sum(path.stat().st_size for path in asked.out.rglob("*") if path.is_file())
    print(f"{asked.out}: {size / 1e6:.1f} MB in {', '.join(asked.sets)}")


if __name__ == "__main__":
    main()
