"""Image files of any size and mode as digits: uint8 (3, 32, 32), the form of every digit set in the package.

Steps applied to a file of one of ``FORMATS``, in this order:

1. A JPEG of 256 or more pixels on its shorter side is decoded at a half, a quarter or an eighth of its size.
2. It is rotated as its EXIF data says.
3. It becomes RGB with 8 bits a channel, whatever it was: black and white, gray, palette, CMYK or 16 bits.
4. Transparent pixels become black, as the ground of the gray sets is; but white where no visible pixel is bright,
   since black ink on nothing would vanish.
5. It is resized bilinearly, with antialiasing, to 32 pixels on its longer side. One with 28 to 32 there keeps its size:
   so the sets' own images, MNIST's 28 x 28 among them, come out of a file as they went in.
6. It is padded to 32 x 32 around its middle, in the median color of its border: black around white on black, paper
   around a scan. Black around everything would draw edges that no digit has.

Dark strokes on bright paper stay dark: which of the two is ink cannot be known in a photograph, and the source's
augmentation shows a network both.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fedlab.data.digits.domains import SIZE
from fedlab.data.images.photo_files import (
    FORMATS,
    SUFFIXES,
    eight_bits,
    is_image_file,
    pixels_or_reason,
    readable_formats,
)
from fedlab.errors import DataError

UNRESIZED = range(28, SIZE + 1)  # lengths of the longer side that are padded and not resized
MIN_DECODED = 128  # pixels on the shorter side that a JPEG is decoded to at least
MAX_PIXELS = 25_000_000  # of an image as it is decoded: half a kilobyte of file can hold gigabytes of one color
LARGE = 4_000_000  # pixels above which images are decoded one at a time, whatever the number of threads
BRIGHT = 128  # lightness from which on something shows on black


__all__ = ["FORMATS", "SUFFIXES", "is_image_file", "load_image_files"]

_decoding_large = threading.Lock()


def load_image_files(paths: Sequence[Path]) -> Tensor:
    """Return image files as uint8 (N, 3, 32, 32), in the order given; they are decoded on several threads.

    Raises
    ------
    DataError
        When there is no file, or some cannot be read: the number of these, and the first one with the reason.
    """
    if not paths:
        raise DataError("there is no image to read; name at least one image file")
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(_attempt, paths))
    images = [result for result in results if not isinstance(result, str)]
    if len(images) < len(paths):
        path, reason = next((path, result) for path, result in zip(paths, results, strict=True) if type(result) is str)
        count = len(paths) - len(images)
        more = "" if count == 1 else f", the first of {count} such files among {len(paths)}"
        raise DataError(f"image {path} cannot be read: {reason}{more}; replace it, or take it away")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _attempt(path: Path) -> NDArray[np.uint8] | str:
    """Return the pixels of a file, or the reason as text, so that one damaged file does not hide the others."""
    return pixels_or_reason(path, lambda: _pixels(path))


def _pixels(path: Path) -> NDArray[np.uint8]:
    """Return one file as (32, 32, 3)."""
    with Image.open(path, formats=readable_formats()) as opened:
        opened.draft(None, (MIN_DECODED, MIN_DECODED))
        pixels = opened.width * opened.height
        if pixels > MAX_PIXELS:
            raise ValueError(f"it has {opened.width:,} x {opened.height:,} pixels; at most {MAX_PIXELS:,} are read")
        with _decoding_large if pixels > LARGE else nullcontext():
            picture = _opaque(eight_bits(ImageOps.exif_transpose(opened)))
    longer = max(picture.size)
    if longer not in UNRESIZED:
        width, height = (max(1, round(side * SIZE / longer)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return _padded(np.asarray(picture))


def _opaque(picture: Image.Image) -> Image.Image:
    """Convert to RGB, on black or on white where the picture is transparent."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")

    def on(ground: str) -> Image.Image:
        return Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture).convert("RGB")

    black = on("black")
    return black if np.asarray(black.convert("L")).max() >= BRIGHT else on("white")


def _padded(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Place (height, width, 3) in the middle of (32, 32, 3)."""
    height, width = pixels.shape[:2]
    if height == width == SIZE:
        return pixels
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])  # (2 * (height + width), 3)
    canvas = np.empty((SIZE, SIZE, 3), np.uint8)
    canvas[:] = np.median(border, axis=0)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas
