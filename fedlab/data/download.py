"""Download the full digit sets, and list which sets are available.

Nothing here is needed for a first run: mnist, usps, mnist_m, optdigits and synthdigits ship with the package.
"""

from __future__ import annotations

import bz2
import io
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fedlab.data.digits import datasets, proxies
from fedlab.data.digits.domains import DOMAINS, OPTDIGITS_TRAIN, PROXY_SOURCE, SIZE, Part
from fedlab.errors import DataError, suggest

TIMEOUT = 30.0  # seconds without an answer; the downloaders themselves would wait for ever
OPTDIGITS_TOTAL = 1797  # digits of scikit-learn's copy
PARTS: tuple[Part, Part] = ("train", "test")


class DomainStatus(NamedTuple):
    """One line of ``fedlab data list``; a count is None where the set cannot be read."""

    domain: str
    where: str
    train: int | None
    test: int | None
    status: str  # "ok", or a sentence


def download(root: Path, domains: Iterable[str], report: Callable[[str], None]) -> None:
    """Download full sets into ``root`` with torchvision's downloaders; sets that are present are left alone.

    Parameters
    ----------
    root
        Folder of the full sets; created when it does not exist.
    domains
        Names of digit domains; those that ship with the package are reported and skipped.
    report
        Called with one line of text per domain.

    Raises
    ------
    DataError
        For an unknown domain, one that has no public downloader, a damaged file, or a network that fails.
    """
    domains = list(domains)
    for domain in domains:
        if domain not in DOMAINS:
            raise DataError(f"no digit domain {domain!r}; {suggest(domain, DOMAINS)}")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create the data root {root} ({error}); choose another folder") from error
    for domain in domains:
        report(f"{domain}: {_download_one(root, domain)}")


def _download_one(root: Path, domain: str) -> str:
    """Download one set if it is missing, and return a line that says what was done."""
    wanted = [root / name for part in PARTS for name in DOMAINS[domain].full.get(part, ())]
    if not wanted or (DOMAINS[domain].optional and not wanted[0].is_file()):
        return "comes with fedlab, nothing to fetch"
    if all(path.is_file() for path in wanted):
        train, test = (_count(domain, part, root) for part in PARTS)
        return f"present in {root}, {train:,} train and {test:,} test images"
    if domain not in _FETCHERS:
        raise DataError(
            f"{domain} has no public downloader; put its files at {wanted[0]} and {wanted[1]} (npz with x, uint8 "
            "(N, 32, 32, 3), and y, 0..9), or use the set that ships with fedlab"
        )
    # A transfer that breaks off must not leave half a file where a whole one is expected.
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            with _timeout(TIMEOUT):
                _FETCHERS[domain](Path(folder))
            for path in wanted:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(folder) / path.relative_to(root), path)
    except Exception as error:  # network libraries fail in many ways; the cause stays attached
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{domain} could not be fetched into {root} ({reason}); check the network and its proxy settings, or run "
            "without a download: mnist, usps, mnist_m, optdigits and synthdigits ship with fedlab"
        ) from error
    train, test = (_count(domain, part, root) for part in PARTS)
    return f"fetched into {root}, {train:,} train and {test:,} test images"


# Each lays out one set below a folder as below a data root; torchvision is imported late, it costs a second.


def _fetch_mnist(folder: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(folder, download=True)


def _fetch_usps(folder: Path) -> None:
    from torchvision.datasets import USPS

    for train in (True, False):
        USPS(folder / "USPS", train=train, download=True)


def _fetch_svhn(folder: Path) -> None:
    from torchvision.datasets import SVHN

    for part in PARTS:
        SVHN(folder / "SVHN", split=part, download=True)


_FETCHERS: dict[str, Callable[[Path], None]] = {"mnist": _fetch_mnist, "usps": _fetch_usps, "svhn": _fetch_svhn}
DOWNLOADABLE = tuple(_FETCHERS)


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def available(root: Path | None) -> list[DomainStatus]:
    """Return the status of every domain as :func:`fedlab.data.digits.datasets.load_digits` would find it.

    Counts come from the headers of the files. Nothing is raised: a problem becomes the ``status`` of its domain.
    """
    return [_available_one(domain, root) for domain in DOMAINS]


def _available_one(domain: str, root: Path | None) -> DomainStatus:
    counts: dict[Part, int] = {}
    problems = []
    where = "-"
    for part in PARTS:
        try:
            paths = datasets.files(domain, part, root)
            where = _where(domain, paths)
            counts[part] = _count(domain, part, root)
        except DataError as error:
            problems.append(str(error))
    # One cause often stops both parts, with the same sentence.
    status = "; ".join(dict.fromkeys(problems)) or "ok"
    return DomainStatus(domain, where, counts.get("train"), counts.get("test"), status)


def _where(domain: str, paths: tuple[Path, ...]) -> str:
    if DOMAINS[domain].proxy:
        return f"made from {' '.join(PROXY_SOURCE)}"
    return "embedded" if datasets.is_embedded(paths) else str(paths[0].parent) if paths else "scikit-learn"


def _count(domain: str, part: Part, root: Path | None) -> int:
    """Return the number of images of one part, read from the headers of its files.

    Raises
    ------
    DataError
        When a file is missing or damaged.
    """
    paths = datasets.files(domain, part, root)
    if not paths:
        return OPTDIGITS_TRAIN if part == "train" else OPTDIGITS_TOTAL - OPTDIGITS_TRAIN
    counts = set()
    for path in paths:
        if not path.is_file():
            raise DataError(f"missing: expected {path}")
        try:
            counts |= _COUNTERS[path.suffix](path)
        except Exception as error:  # as in digits: a damaged file can fail in nearly any way
            raise DataError(f"damaged: {path} ({error or type(error).__name__}); replace it") from error
    if len(counts) != 1:
        raise DataError(f"damaged: {', '.join(map(str, paths))} hold {sorted(counts)} images and labels; replace them")
    count = counts.pop()
    return len(proxies.part_rows(count, part)) if DOMAINS[domain].proxy else count


def _count_npz(path: Path) -> set[int]:
    """Return the numbers of rows of x (or of tiles of the sheet) and of y, without decoding the images."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        counts = {len(archive["y"])} if "y" in archive.files else set()
        if "sheet" in archive.files:
            width, height = Image.open(io.BytesIO(archive["sheet"].tobytes())).size
            return counts | {(width // SIZE) * (height // SIZE)}
        with archive.zip.open("x.npy") as member:
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = header(member)
            return counts | {shape[0]}


def _count_idx(path: Path) -> set[int]:
    """Return the number of items of an idx file.

    Raises
    ------
    ValueError
        When the file's size is not what its header promises.
    """
    with path.open("rb") as file:
        magic, count = struct.unpack(">II", file.read(8))
        extent = struct.unpack(">II", file.read(8)) if magic == 0x0803 else ()
    expected = 8 + 4 * len(extent) + count * int(np.prod(extent, dtype=np.int64))
    if path.stat().st_size != expected:
        raise ValueError(f"{path.stat().st_size:,} bytes, its header promises {expected:,}")
    return {count}


def _count_bz2(path: Path) -> set[int]:
    """Return the number of lines of a compressed text file, one image each."""
    with bz2.open(path) as file:
        return {sum(1 for _ in file)}


def _count_mat(path: Path) -> set[int]:
    """Return the numbers of images of X, (32, 32, 3, N), and of labels of y, (N, 1)."""
    from scipy.io import whosmat

    shapes = {name: shape for name, shape, _ in whosmat(path)}
    return {shapes["X"][3], shapes["y"][0]}


_COUNTERS: dict[str, Callable[[Path], set[int]]] = {
    "": _count_idx,  # MNIST's files have no suffix
    ".npz": _count_npz,
    ".bz2": _count_bz2,
    ".mat": _count_mat,
}
