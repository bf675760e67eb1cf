"""Rebuild the small sets that ship inside the package, from the full sets.

    python scripts/build_embedded.py --data-root /path/to/full/sets

Running it again with the same versions of numpy, Pillow and matplotlib gives the same bytes. The format of the files
and their terms of use are told in ``fedlab/data/embedded/README.md``.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import MNIST, USPS

from fedlab.data.images.domain_suites import DomainSuite, read_part
from fedlab.data.images.office import OFFICE
from fedlab.data.images.pacs import PACS
from fedlab.data.segmentation.camvid import EMBEDDED_FILE, FULL_FILE, LIST_LENGTHS, downsample
from scripts.synthdigits import generate

EMBEDDED = Path(__file__).parent.parent / "fedlab" / "data" / "embedded"
COLUMNS = 50  # tiles in a row of a sheet
TILE = 32  # pixels a side of a tile; a multiple of 8, so that no JPEG block spans two images

MNIST_TRAIN, MNIST_TEST = 6000, 2000
QM9 = {"qm9_train.smi": 5000, "qm9_test.smi": 1000}
USPS_TRAIN = 4000
# MNIST-M image i is MNIST image i on a photograph. Beginning where the embedded MNIST ends keeps the target's
# training images free of digits that the source shows with their labels.
MNIST_M_TRAIN, MNIST_M_TEST = slice(MNIST_TRAIN, MNIST_TRAIN + 2500), slice(0, 1500)
SYNTHDIGITS_TRAIN, SYNTHDIGITS_TEST = 2500, 1500
SYNTHDIGITS_SEED_TRAIN, SYNTHDIGITS_SEED_TEST = 1409, 7495

Images = NDArray[np.uint8]


def sheet(images: Images, file_format: str, **options: object) -> Images:
    """Bytes of one picture file that shows (N, 32, 32, 3) images in rows of 50: no file header for each of them."""
    rows = images.reshape(-1, COLUMNS, TILE, TILE, 3)  # (rows, columns, height, width, channels)
    picture = rows.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * TILE, 3)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, file_format, **options)
    return np.frombuffer(file.getvalue(), dtype=np.uint8)


def omniglot(folder: Path) -> dict[str, NDArray[np.generic]]:
    """Every drawing of the authors' two small background sets, each alphabet once, at 28x28 and white on black."""
    drawings: dict[tuple[str, str, int], Images] = {}  # alphabet, character, drawer
    for archive in ("images_background_small1.zip", "images_background_small2.zip"):
        with zipfile.ZipFile(folder / archive) as files:
            for name in sorted(file for file in files.namelist() if file.endswith(".png")):
                _, alphabet, character, drawing = name.split("/")
                ink = Image.open(io.BytesIO(files.read(name))).convert("L").point(lambda value: 255 - value)
                small = np.asarray(ink.resize((28, 28), Image.Resampling.BOX), dtype=np.float32)
                key = alphabet, character, int(drawing[-6:-4])
                drawings[key] = np.rint(small * (255 / small.max() / 17)).astype(np.uint8) * 17  # 16 greys
    keys = sorted(drawings)
    alphabets = sorted({alphabet for alphabet, _, _ in keys})
    characters = sorted({key[:2] for key in keys})
    return {
        "x": np.stack([drawings[key] for key in keys]),
        "y": np.array([characters.index(key[:2]) for key in keys], dtype=np.uint8),
        "alphabet": np.array([alphabets.index(key[0]) for key in keys], dtype=np.uint8),
        "drawer": np.array([key[2] for key in keys], dtype=np.uint8),
        "alphabets": np.array(alphabets),
    }


def camvid(file: Path) -> dict[str, NDArray[np.generic]]:
    """All views of the three published lists at half the file's size, JPEG end to end, and their labels."""
    pictures, labels = [], []
    with np.load(file) as full:
        for name in LIST_LENGTHS:
            labels.append(full[f"y_{name}"][:, ::2, ::2])
            for view in downsample(full[f"x_{name}"], 2):
                picture = io.BytesIO()
                Image.fromarray(view).save(picture, "JPEG", quality=90, subsampling=0, optimize=True)
                pictures.append(picture.getvalue())
    offsets = np.cumsum([0, *map(len, pictures)]).astype(np.int64)
    return {"buf": np.frombuffer(b"".join(pictures), np.uint8), "off": offsets, "y": np.concatenate(labels)}


def planes_sheet(planes: Images) -> Images:
    """A JPEG sheet of (N, 3, 32, 32) images; quality 85 keeps PACS at 32 dB and below 3 MB."""
    return sheet(planes.transpose(0, 2, 3, 1), "JPEG", quality=85, subsampling=0, optimize=True)


def domain_set(of: DomainSuite, root: Path, folder: Path, pack: Callable[[Images], Images] = np.asarray) -> None:
    """The beginning of both parts of every domain; inputs and labels of a part in files of their own."""
    for part, count in of.embedded.items():
        parts = {domain: read_part(of, root / of.folder, domain, part) for domain in of.domains}
        inputs = {domain: pack(found.inputs[:count]) for domain, found in parts.items()}
        np.savez_compressed(folder / f"{of.name}_{part}.npz", **inputs)
        labels = {domain: found.labels[:count] for domain, found in parts.items()}
        np.savez_compressed(folder / f"{of.name}_{part}_labels.npz", **labels)


def build(root: Path, folder: Path) -> None:
    """Write every embedded file; training labels of the targets go to a file of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "omniglot.npz", **omniglot(root / "omniglot"))
    np.savez_compressed(folder / EMBEDDED_FILE, **camvid(root / FULL_FILE))
    domain_set(OFFICE, root, folder)
    domain_set(PACS, root, folder, planes_sheet)
    labels_for_bounds = {}

    train, test = MNIST(root, train=True), MNIST(root, train=False)
    x, y = train.data.numpy(), train.targets.numpy().astype(np.uint8)
    np.savez_compressed(folder / "mnist_train.npz", x=x[:MNIST_TRAIN], y=y[:MNIST_TRAIN])
    x, y = test.data.numpy(), test.targets.numpy().astype(np.uint8)
    np.savez_compressed(folder / "mnist_test.npz", x=x[:MNIST_TEST], y=y[:MNIST_TEST])

    train, test = USPS(root / "USPS", train=True), USPS(root / "USPS", train=False)
    np.savez_compressed(folder / "usps_train.npz", x=train.data[:USPS_TRAIN])
    labels_for_bounds["usps"] = np.array(train.targets[:USPS_TRAIN], dtype=np.uint8)
    np.savez_compressed(folder / "usps_test.npz", x=test.data, y=np.array(test.targets, dtype=np.uint8))

    lossless = {"file_format": "WEBP", "lossless": True, "quality": 100, "method": 4}
    with np.load(root / "mnist_m" / "train.npz") as full:
        np.savez_compressed(folder / "mnist_m_train.npz", sheet=sheet(full["x"][MNIST_M_TRAIN], **lossless))
        labels_for_bounds["mnist_m"] = full["y"][MNIST_M_TRAIN].astype(np.uint8)
    with np.load(root / "mnist_m" / "test.npz") as full:
        x, y = full["x"][MNIST_M_TEST], full["y"][MNIST_M_TEST].astype(np.uint8)
        np.savez_compressed(folder / "mnist_m_test.npz", sheet=sheet(x, **lossless), y=y)

    jpeg = {"file_format": "JPEG", "quality": 92, "subsampling": 0, "optimize": True}
    x, y = generate(SYNTHDIGITS_TRAIN, SYNTHDIGITS_SEED_TRAIN)
    np.savez_compressed(folder / "synthdigits_train.npz", sheet=sheet(x, **jpeg))
    labels_for_bounds["synthdigits"] = y.astype(np.uint8)
    x, y = generate(SYNTHDIGITS_TEST, SYNTHDIGITS_SEED_TEST)
    np.savez_compressed(folder / "synthdigits_test.npz", sheet=sheet(x, **jpeg), y=y.astype(np.uint8))

    np.savez_compressed(folder / "bounds_only_train_labels.npz", **labels_for_bounds)

    for file, count in QM9.items():  # a heading and the first lines
        lines = (root / "molecules" / file).read_text(encoding="utf-8").splitlines()[: count + 1]
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Build, then list what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default=os.environ.get("FEDLAB_DATA"), help="full sets (default: FEDLAB_DATA)")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="folder to write (default: the package's own)")
    arguments = parser.parse_args()
    if not arguments.data_root:
        print("no full sets: give --data-root or set FEDLAB_DATA to their folder", file=sys.stderr)
        return 2
    build(Path(arguments.data_root), arguments.out)
    files = sorted([*arguments.out.glob("*.npz"), *arguments.out.glob("*.smi")])
    for file in files:
        print(f"{file.stat().st_size:>9,}  {file.name}")
    print(f"{sum(file.stat().st_size for file in files):>9,}  in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
