"""Digit domains, all as uint8 (3, 32, 32) in memory and as float32 in [-1, 1] when a batch is read.

:func:`load_digits` is the whole interface. Which columns it gives depends on the split and on ``with_labels``:

=======  ===========  =======  ===================================================================================
split    with_labels  columns  reader
=======  ===========  =======  ===================================================================================
train    False        x        a target: images, never a label
train    True         x, y     the source. With ``upper_bound`` also supervised upper bounds of a target, the sole
                               reader of the file ``bounds_only_train_labels.npz``
test     any          x, y     evaluation
=======  ===========  =======  ===================================================================================

Gray sets are white on black. MNIST is padded from 28 to 32; USPS (16) and optdigits (8) are resized bilinearly.
The four proxies are made when they are read, from MNIST's test images: the first half becomes their train part, the
second their test part (``fedlab.data.digits.proxies``). No training split holds those images, and their labels are
the source's own, so labels of a proxy's training part are available to all.

**Source**: per set in ``embedded/README.md``. **Departures**: optdigits is scikit-learn's copy (the 1,797 test digits
of UCI), split here at random once: 1,200 to train, 597 to test.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from fedlab.data.dataset import ArrayDataset
from fedlab.data.digits import proxies
from fedlab.data.digits.domains import DOMAINS, PROXY_SOURCE, SIZE, Part, read_npz
from fedlab.data.pixels import to_float
from fedlab.data.sources import PACKAGE, DataSource
from fedlab.errors import DataError, suggest
from fedlab.files import expand_user

__all__ = [
    "BOUND_LABELS",
    "DOMAINS",
    "EMBEDDED",
    "SPLITS",
    "data_root",
    "digit_source",
    "files",
    "is_embedded",
    "load_digits",
    "read_npz",
]

CLASSES = 10
SPLITS: tuple[Part, Part] = ("train", "test")
EMBEDDED = Path(__file__).parents[1] / "embedded"
BOUND_LABELS = "bounds_only_train_labels.npz"
FETCH = "put it there (`fedlab data download` fetches mnist, usps and svhn)"
DOWNLOAD = dict.fromkeys(("mnist", "usps", "svhn"), " (`fedlab data download FOLDER`)")
PROXY_SEEDS: Mapping[Part, int] = {"train": 1409, "test": 7495}
REINSTALL = "the package is damaged, reinstall fedlab"


def data_root(explicit: str | Path | None = None) -> Path | None:
    """Return the folder of the full sets: ``explicit``, else the variable FEDLAB_DATA, else None.

    Empty strings count as not given.
    """
    given = str(explicit or "") or os.environ.get("FEDLAB_DATA", "")
    return expand_user(given) if given else None


def unset_root(path: Path) -> str:
    """Return the remedy that reads the sets inside the package instead of ``path``, a data root or a file below it."""
    variable = os.environ.get("FEDLAB_DATA", "")
    root, path = Path(variable).expanduser().resolve(), path.resolve()
    return f"unset {'FEDLAB_DATA' if variable and (root == path or root in path.parents) else 'data.root'}"


class EmbeddedSetWarning(UserWarning):
    """A data root has no folder of a set, so that the small set inside the package takes its place."""


def note_embedded(name: str, root: Path) -> None:
    """Warn that a set inside the package takes the place of one that a data root has not.

    Warns
    -----
    EmbeddedSetWarning
        Always.
    """
    warnings.warn(
        f"{root} has no folder of {name}: the small set inside the package is read", EmbeddedSetWarning, stacklevel=3
    )


def load_digits(
    domain: str, split: str, root: Path | None = None, *, with_labels: bool = False, upper_bound: bool = False
) -> ArrayDataset:
    """Return the digits of one domain and split.

    The columns are shared by all callers in the process, so that several clients decode a set once: treat
    ``dataset.columns`` as read-only. What indexing returns is the caller's own.

    Parameters
    ----------
    domain
        A key of ``DOMAINS``.
    split
        "train" or "test".
    root
        Folder of the full sets, see :func:`data_root`; None reads the sets inside the package, and so does a folder
        without the set's own.
    with_labels
        Give labels of training images as well.
    upper_bound
        Where training images ship without labels, read them from the file kept for supervised upper bounds.

    Returns
    -------
    ArrayDataset
        x : (N, 3, 32, 32), float32 in [-1, 1] once indexed, uint8 in ``columns``; y : (N,), int64 in 0..9, see the
        table above.

    Raises
    ------
    DataError
        For an unknown name, a file that is missing or damaged, or labels that do not exist.

    Warns
    -----
    EmbeddedSetWarning
        When the root has no folder of the set, so that the one inside the package is read.
    """
    if split not in SPLITS:
        raise DataError(f"no split {split!r}; {suggest(split, SPLITS)}")
    part: Part = "test" if split == "test" else "train"
    paths = files(domain, part, root)
    if root is not None and is_embedded(paths) and not DOMAINS[domain].optional:
        note_embedded(domain, root)
    x, y = _load(domain, part, root, paths)
    if part == "train" and not with_labels:
        return ArrayDataset({"x": x}, to_float)
    if y is None and upper_bound:
        y = _bound_labels(domain, len(x), EMBEDDED / BOUND_LABELS)
    if y is None:
        raise DataError(
            f"{domain} ships without training labels, so that no target sees any: take mnist as the source, set "
            "data.root or FEDLAB_DATA to the full sets, or read it with upper_bound=True for a supervised bound"
        )
    return ArrayDataset({"x": x, "y": y}, to_float)


def files(domain: str, part: Part, root: Path | None) -> tuple[Path, ...]:
    """Return the files of one part of a domain, whether they exist or not; none when the set comes with a library.

    Files of a proxy are those that it is made from.

    Raises
    ------
    DataError
        For an unknown domain, a root that is no folder, or a set that does not ship and has no root.
    """
    if domain not in DOMAINS:
        raise DataError(f"no digit domain {domain!r}; {suggest(domain, DOMAINS)}")
    entry = DOMAINS[domain]
    if entry.proxy:
        return files(*PROXY_SOURCE, root)
    if not entry.full:
        return ()
    if root is not None and not root.is_dir():
        raise DataError(
            f"data root {root} is not a folder; create it with `fedlab data download`, or {unset_root(root)}"
        )
    below = () if root is None else tuple(root / name for name in entry.full[part])
    if root is not None and not (entry.embedded and not (root / Path(entry.full[part][0]).parts[0]).is_dir()):
        return below
    if not entry.embedded:
        raise DataError(
            f"{domain} does not ship with fedlab; fetch it with `fedlab data download` and set data.root or "
            f"FEDLAB_DATA to the folder that holds {Path(entry.full[part][0]).parent}/"
        )
    return (EMBEDDED / f"{domain}_{part}.npz",)


def digit_source(domain: str, root: Path | None, examples: int) -> DataSource:
    """Return where the training part of a domain is read from, of which a run takes so many examples.

    Raises
    ------
    DataError
        As :func:`files`.
    """
    paths = files(domain, "train", root)
    if not is_embedded(paths):
        return DataSource(domain, examples, str(root) if paths else "scikit-learn")
    source, part = PROXY_SOURCE if DOMAINS[domain].proxy else (domain, "train")
    folder = Path(DOMAINS[source].full[part][0]).parts[0]
    return DataSource(domain, examples, PACKAGE, f"put {source} into FOLDER/{folder}{DOWNLOAD.get(source, '')}")


def is_embedded(paths: tuple[Path, ...]) -> bool:
    """Return True when files are those inside the package."""
    return bool(paths) and paths[0].parent == EMBEDDED


@lru_cache(maxsize=32)
def _load(domain: str, part: Part, root: Path | None, paths: tuple[Path, ...]) -> tuple[Tensor, Tensor | None]:
    """Return checked images, uint8 (N, 3, 32, 32), and labels, int64 (N,), or None where the file has none."""
    entry = DOMAINS[domain]
    if entry.proxy:
        return _load_proxy(entry.proxy, part, root, paths)
    for path in paths:
        if not path.is_file():
            remedy = "reinstall fedlab" if is_embedded(paths) else f"{FETCH}, or {unset_root(path)}"
            raise DataError(f"{domain}: expected {path}, found no such file; {remedy}")
    where = f"{domain}: {' and '.join(map(str, paths)) or 'scikit-learn'}"
    try:
        if is_embedded(paths):
            images, labels = read_npz(paths[0])
        else:
            images, labels = entry.read_full(root or EMBEDDED, part)
        images = np.asarray(images)
        labels = None if labels is None else np.asarray(labels)
    except Exception as error:  # a damaged file can fail in a reader in nearly any way; the cause stays attached
        raise DataError(f"{where} cannot be read ({error or type(error).__name__}); {_replace(paths)}") from error
    if images.dtype != np.uint8 or images.shape[1:] != entry.shape or not len(images):
        raise DataError(
            f"{where} holds images of {images.dtype} {images.shape}, expected uint8 (N, "
            f"{', '.join(map(str, entry.shape))}) with N at least 1; {_replace(paths)}"
        )
    if labels is not None:
        _check_labels(labels, len(images), where, _replace(paths))
        labels = torch.from_numpy(labels.astype(np.int64))
    return _to_canvas(images), labels


def _load_proxy(kind: str, part: Part, root: Path | None, paths: tuple[Path, ...]) -> tuple[Tensor, Tensor | None]:
    """Return one half of the proxies' source under one kind of shift, as :func:`_load` does."""
    x, y = _load(*PROXY_SOURCE, root, paths)
    rows = proxies.part_rows(len(x), part)
    if not rows:
        raise DataError(f"{' and '.join(map(str, paths))} holds {len(x)} image, a proxy needs 2 for its two parts")
    half = slice(rows.start, rows.stop)
    images = proxies.make_proxy(x[half, 0].numpy(), kind, PROXY_SEEDS[part])
    return _to_canvas(images), None if y is None else y[half]


def _replace(paths: tuple[Path, ...]) -> str:
    return REINSTALL if is_embedded(paths) or not paths else f"replace the file, or {unset_root(paths[0])}"


def _check_labels(labels: Any, count: int, where: str, remedy: str) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(
            f"{where} holds labels of {labels.dtype} {labels.shape} for {count} images, expected integers ({count},); "
            f"{remedy}"
        )
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise DataError(f"{where} holds labels {labels.min()}..{labels.max()}, expected 0..{CLASSES - 1}; {remedy}")


def _bound_labels(domain: str, count: int, path: Path) -> Tensor:
    """Return training labels of an embedded target, int64 (N,): for supervised upper bounds only."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            labels = archive[domain]
    except Exception as error:  # as in _load
        raise DataError(f"{path} cannot be read ({error}); {REINSTALL}") from error
    _check_labels(labels, count, f"{domain}: {path}", REINSTALL)
    return torch.from_numpy(labels.astype(np.int64))


def _to_canvas(images: Any) -> Tensor:
    """Convert uint8 (N, H, W) or (N, H, W, 3) to uint8 (N, 3, 32, 32); gray is stored once and viewed three times."""
    x = torch.from_numpy(images)
    x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x[:, None]  # (N, 3 or 1, H, W)
    if x.shape[-1] < 28:
        x = interpolate(x.float(), (SIZE, SIZE), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
    margin = (SIZE - x.shape[-1]) // 2
    return pad(x, [margin] * 4).expand(-1, 3, -1, -1)
