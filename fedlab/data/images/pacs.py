"""PACS: seven classes in four styles, art paintings, cartoons, photographs and sketches, color 32x32.

**Source**: Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017.

**Departures**: (1) 32 pixels a side instead of 227, averaged down from 64. (2) The split, 70 % to train on and 30 % to
test, is ours: the published lists are for domain generalization, which has no target to train on.
"""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedlab.data.dataset import Batch
from fedlab.data.digits.domains import SIZE, decode_tiles
from fedlab.data.images import views
from fedlab.data.images.domain_suites import DomainSuite, LabeledArrays
from fedlab.data.pixels import to_float

FILE = "pacs_64.npz"  # JPEG pictures end to end: buf, off, y, classes, domain, domains


def read_domain(folder: Path, domain: str, size: int = SIZE) -> LabeledArrays:
    """Return images (N, 3, size, size) uint8 and labels (N,) of one domain of the full set."""
    with np.load(folder / FILE, allow_pickle=False) as archive:
        buffer, offsets, labels = archive["buf"], archive["off"], archive["y"]
        number = archive["domains"].tolist().index(domain)
        rows = np.flatnonzero(archive["domain"] == number)
    bounds = list(pairwise(offsets))
    pictures = [
        np.asarray(
            Image.open(io.BytesIO(buffer[slice(*bounds[row])].tobytes()))
            .convert("RGB")
            .resize((size, size), Image.Resampling.BOX)
        )
        for row in rows
    ]
    return LabeledArrays(_planes(np.stack(pictures)), labels[rows])


def _planes(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))


def _unpack(sheet: Any) -> NDArray[np.uint8]:
    return _planes(decode_tiles(sheet.tobytes()))


def augment(batch: Batch) -> Batch:
    """Return a batch with a random view of each image (3, 32, 32): crop, mirror, color changes, some without color."""
    return {**batch, "x": views.photo_view(to_float(batch)["x"])}


PACS = DomainSuite(
    name="pacs",
    domains=("art_painting", "cartoon", "photo", "sketch"),
    classes=("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
    folder="pacs",
    train_fraction=0.7,
    embedded={"train": 1000, "test": 350},
    read_domain=read_domain,
    unpack=_unpack,
    to_float=to_float,
)
