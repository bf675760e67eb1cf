"""Small full sets in the published formats, and a way to damage them; each fixture is a function."""

import bz2
import struct
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def write_mnist():
    def write(root: Path, count: int = 12) -> None:
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for prefix in ("train", "t10k"):
            pixels = np.arange(count * 784, dtype=np.uint8).tobytes()
            (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + pixels)
            labels = bytes(i % 10 for i in range(count))
            (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)

    return write


@pytest.fixture
def write_usps():
    def write(root: Path, count: int = 12) -> None:
        (root / "USPS").mkdir(parents=True)
        pixels = " ".join(f"{i + 1}:{i / 128 - 1:.4f}" for i in range(256))
        lines = "".join(f"{i % 10 + 1} {pixels}\n" for i in range(count))
        for name in ("usps.bz2", "usps.t.bz2"):
            (root / "USPS" / name).write_bytes(bz2.compress(lines.encode()))

    return write


@pytest.fixture
def write_npz():
    def write(root: Path, domain: str, x=None, y=None, part: str = "train") -> Path:
        path = root / domain / f"{part}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        x = np.zeros((10, 32, 32, 3), np.uint8) if x is None else x
        np.savez_compressed(path, x=x, y=np.arange(10) if y is None else y)
        return path

    return write


@pytest.fixture
def truncate():
    def cut(path: Path, keep: float = 0.5) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return cut
