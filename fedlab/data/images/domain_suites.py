"""Suites of several domains with the same classes, any of which may be the source: PACS, Office-Caltech10.

:func:`load_domain` is the whole interface. Training labels are columns only where they are asked for:

=======  ===========  =======  ==============================================================
split    with_labels  columns  reader
=======  ===========  =======  ==============================================================
train    False        x        a target: inputs, never a label
train    True         x, y     the source, supervised upper bounds of a target, and partitioners
test     any          x, y     evaluation
=======  ===========  =======  ==============================================================

Since every domain may be the source, labels of all training parts ship, in a file of their own,
``NAME_train_labels.npz``, which is opened only for ``with_labels``. Train and test part never meet: of examples that
are equal in every byte the first is kept, the rest is split once, stratified by class, with a seed of its own, and the
beginning of both parts ships.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.digits.datasets import EMBEDDED, SPLITS, unset_root
from fedlab.data.digits.domains import Part
from fedlab.data.sources import PACKAGE, DataSource
from fedlab.errors import DataError, plural, suggest

CUT_SEED = 1709  # one cut for all runs


class LabeledArrays(NamedTuple):
    """Inputs (N, ...) and labels (N,), both uint8."""

    inputs: NDArray[np.uint8]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class DomainSuite:
    """Description of a suite, and how it is read.

    Attributes
    ----------
    name
        Name of the suite's files inside the package, and of its workload.
    domains, classes
        Names of the domains, and of the classes by label.
    folder
        Folder below a data root; where it is missing, the embedded part is read.
    train_fraction
        Fraction of each domain's examples in the train part.
    embedded
        Largest number of examples of each part that ships.
    read_domain
        Reads all of one domain from the suite's folder: inputs (N, ...) uint8 and labels (N,).
    unpack
        Inputs (N, ...) uint8 of one array of a file inside the package.
    to_float
        Transform of a stored batch to a batch of float32 inputs.
    """

    name: str
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    folder: str
    train_fraction: float
    embedded: dict[Part, int]
    read_domain: Callable[[Path, str], LabeledArrays]
    unpack: Callable[[Any], Any]
    to_float: Callable[[Batch], Batch]

    # Sets are module constants: what is cached for one is found by its identity.
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def load_domain(
    suite: DomainSuite, domain: str, split: str, root: Path | None = None, *, with_labels: bool = False
) -> ArrayDataset:
    """Return one domain and split.

    The columns are shared by all callers in the process: treat ``dataset.columns`` as read-only.

    Parameters
    ----------
    suite
        ``OFFICE`` or ``PACS``.
    domain, split
        A name in ``suite.domains``; "train" or "test".
    root
        Folder of the full sets; None reads the embedded part.
    with_labels
        Give labels of the training part as well.

    Returns
    -------
    ArrayDataset
        x : (N, ...), float32 once indexed, uint8 in ``columns``; y : (N,) int64, see the table above.

    Raises
    ------
    DataError
        For an unknown name, or a file that is missing or damaged.
    """
    if domain not in suite.domains:
        raise DataError(f"{suite.name} has no domain {domain!r}; {suggest(domain, suite.domains)}")
    if split not in SPLITS:
        raise DataError(f"no split {split!r}; {suggest(split, SPLITS)}")
    part: Part = "test" if split == "test" else "train"
    folder = full_folder(suite, root)
    try:
        x = _inputs(suite, domain, part, folder)
        if part == "train" and not with_labels:
            return ArrayDataset({"x": x}, suite.to_float)
        y = _labels(suite, domain, part, folder)
    except Exception as error:  # a damaged file can fail in a reader in nearly any way; the cause stays attached
        where = folder or EMBEDDED
        raise DataError(
            f"{suite.name}: {domain} cannot be read from {where} ({error or type(error).__name__}); "
            + (f"replace the file, or {unset_root(folder)}" if folder else "the package is damaged, reinstall fedlab")
        ) from error
    return ArrayDataset({"x": x, "y": y}, suite.to_float)


def full_folder(suite: DomainSuite, root: Path | None) -> Path | None:
    """Return the folder of the full suite, or None where the embedded part is read.

    Raises
    ------
    DataError
        When the data root is no folder.
    """
    if root is None:
        return None
    if not root.is_dir():
        raise DataError(f"data root {root} is not a folder; name the folder of the full sets, or {unset_root(root)}")
    return root / suite.folder if (root / suite.folder).is_dir() else None


def suite_source(suite: DomainSuite, domain: str, root: Path | None, examples: int) -> DataSource:
    """Return where the training part of a domain is read from, of which a run takes so many examples.

    Raises
    ------
    DataError
        As :func:`full_folder`.
    """
    folder = full_folder(suite, root)
    if folder:
        return DataSource(domain, examples, str(folder))
    whole = len(_inputs(suite, domain, "train", None)) < suite.embedded["train"]
    return DataSource(domain, examples, PACKAGE, "" if whole else f"put {suite.name} into FOLDER/{suite.folder}")


def read_part(suite: DomainSuite, folder: Path, domain: str, part: Part) -> LabeledArrays:
    """Return one part of one domain of the full suite, in random order with every class in its fraction; read-only.

    Raises
    ------
    ValueError
        When inputs and labels do not fit each other.
    """
    inputs, labels = _read_domain(suite, domain, folder)
    rows = _rows(labels.tobytes(), suite.train_fraction)[part]
    return LabeledArrays(inputs[rows], labels[rows])


@lru_cache(maxsize=16)
def _read_domain(suite: DomainSuite, domain: str, folder: Path) -> LabeledArrays:
    inputs, labels = suite.read_domain(folder, domain)
    labels = np.asarray(labels, dtype=np.uint8)
    if len(inputs) != len(labels) or not len(labels) or labels.max() >= len(suite.classes):
        raise ValueError(
            f"{plural(len(inputs), 'example')} with {plural(len(labels), 'label')} of which the largest is "
            f"{labels.max(initial=0)}; "
            f"expected as many labels, from 0 to {len(suite.classes) - 1}"
        )
    flat = np.ascontiguousarray(inputs).reshape(len(inputs), -1)
    first = np.sort(np.unique(flat.view(f"V{flat.shape[1]}"), return_index=True)[1])  # equal examples count once
    return LabeledArrays(inputs[first], labels[first])


@lru_cache(maxsize=16)
def _rows(labels: bytes, fraction: float) -> dict[Part, Any]:
    from sklearn.model_selection import train_test_split

    classes = np.frombuffer(labels, dtype=np.uint8)
    train, test = train_test_split(
        np.arange(len(classes)), train_size=fraction, stratify=classes, random_state=CUT_SEED
    )
    return {"train": train, "test": test}


@lru_cache(maxsize=32)
def _inputs(suite: DomainSuite, domain: str, part: Part, folder: Path | None) -> Tensor:
    if folder:
        return torch.from_numpy(np.ascontiguousarray(read_part(suite, folder, domain, part).inputs))
    with np.load(EMBEDDED / f"{suite.name}_{part}.npz", allow_pickle=False) as archive:
        return torch.from_numpy(suite.unpack(archive[domain]))


@lru_cache(maxsize=32)
def _labels(suite: DomainSuite, domain: str, part: Part, folder: Path | None) -> Tensor:
    if folder:
        return torch.from_numpy(read_part(suite, folder, domain, part).labels.astype(np.int64))
    name = f"{suite.name}_{part}_labels.npz"
    with np.load(EMBEDDED / name, allow_pickle=False) as archive:
        return torch.from_numpy(archive[domain].astype(np.int64))
