"""Image files of any kind and size as squares of bytes, as a person sees them.

Steps applied to a file, in this order:

1. Its content says what it is, whatever its name says; of an animation or of several pages the first is taken.
2. A JPEG is decoded at a half, a quarter or an eighth of its size where that leaves twice the pixels that are needed.
3. It is rotated as its EXIF data says.
4. It becomes RGB with 8 bits a channel, whatever it was: black and white, gray, palette, CMYK, 16 bits or floats.
5. Transparent pixels become white, the paper of most pages.
6. The largest square around its middle is resized to the size asked for (bicubic, antialiased).

Needs neither torch nor the rest of fedlab, so that worker processes start quickly.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow reads without other programs; AVIF since 11.3. Of several pictures in a file the first is taken.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".tga"),
)
# Images that a person sees in a folder and that are not read here; each is listed as skipped.
UNREAD = (".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2")
MAX_PIXELS = 60_000_000  # of an image as it is decoded: half a kilobyte of file can hold gigabytes of one color
CHECK_SIZE = 8  # pixels a side that a file is decoded to, to see whether it can be
BLOCK = 1 << 20


def load_photo(path: Path, size: int) -> NDArray[np.uint8]:
    """Return one file as (size, size, 3); errors of any kind where it is damaged, see :func:`try_photo`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which do no harm, and of size, which is limited below
        with Image.open(path, formats=readable_formats()) as opened:
            opened.draft(None, (2 * size, 2 * size))
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"it has {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read")
            picture = opaque(eight_bits(ImageOps.exif_transpose(opened)))
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))


def try_photo(path: Path, size: int) -> NDArray[np.uint8] | str:
    """Return the pixels (size, size, 3) of a file, or the reason why it has none as text."""
    return pixels_or_reason(path, lambda: load_photo(path, size))


def pixels_or_reason(path: Path, load: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8] | str:
    """Return the pixels that ``load`` reads from a file, or the reason why it has none as text."""
    try:
        return load()
    except UnidentifiedImageError:
        return f"it is none of {', '.join(readable_formats())}" if path.stat().st_size else "it is empty"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # a damaged file can fail in a decoder in nearly any way
        return str(error) or type(error).__name__


def examine(path: Path) -> tuple[str, str]:
    """Return the SHA-256 of a file's content, and the reason why it cannot be used: "" where it can."""
    if path.suffix.lower() in UNREAD:
        return "", f"{path.suffix[1:].upper()} files are not read here; save it as JPEG or PNG"
    if not is_image_file(path):
        return "", "it is no image by its name"
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    except OSError as error:
        return "", error.strerror or str(error)
    found = try_photo(path, CHECK_SIZE)
    return digest.hexdigest(), found if isinstance(found, str) else ""


def is_image_file(path: Path) -> bool:
    """Return True for the name of an image file; hidden files, such as macOS's ``._7.png``, do not count."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


@cache
def readable_formats() -> tuple[str, ...]:
    """Return those of ``FORMATS`` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def eight_bits(picture: Image.Image) -> Image.Image:
    """Convert gray of 16 or 32 bits and floats to 8-bit gray; color of 16 bits is decoded as 8 bits already.

    The range of integers is that of 16 bits; floats that reach no more than 1 are fractions, others are taken as
    integers are, with 255 as the brightest where no pixel exceeds it.
    """
    if picture.mode not in ("F", "I") and not picture.mode.startswith("I;"):
        return picture
    values = np.nan_to_num(np.asarray(picture).astype(np.float64))
    brightest = 65535.0
    if picture.mode == "F":
        brightest = next((limit for limit in (1.0, 255.0) if values.max(initial=0) <= limit), 65535.0)
    return Image.fromarray((values * (255 / brightest)).round().clip(0, 255).astype(np.uint8))


def opaque(picture: Image.Image) -> Image.Image:
    """Convert to RGB, on white where the picture is transparent."""
    if "A" not in picture.getbands() and "a" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
