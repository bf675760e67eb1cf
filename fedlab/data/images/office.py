"""Office-Caltech10: ten classes of objects in four collections, as histograms of 800 SURF words.

**Source**: Gong et al., Geodesic Flow Kernel for Unsupervised Domain Adaptation, CVPR 2012: the ten classes that
Office-31 (Saenko et al., ECCV 2010) shares with Caltech-256 (Griffin et al., 2007).

**Departures**: (1) each domain is split in halves, one to train on and one to test, where the published protocol adapts
to the very examples that it tests. (2) 25 examples of amazon and one of caltech10 occur twice and count once.
(3) Counts become the square roots of word frequencies (Hellinger); the usual z-score is the model's first batch norm,
by which ``source_only`` standardizes a target with the source's mean and deviation, and a method that adapts statistics
with the target's own (``fedlab/models/histogram_mlp.py``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlab.data.dataset import Batch
from fedlab.data.images.domain_suites import DomainSuite, LabeledArrays

WORDS = 800
MAX_EXAMPLES = 10_000  # examples of one part; no domain has as many, so all of it ships
KEEP_FRACTION = (0.2, 1.0)  # range of the fraction of an image's key points that a random view keeps


def _read_domain(folder: Path, domain: str) -> LabeledArrays:
    """Return counts (N, 800) uint8 and labels (N,) from 0, from the authors' ``fts`` and ``labels``."""
    from scipy.io import loadmat

    file = loadmat(folder / f"{domain}.mat", variable_names=("fts", "labels"))
    counts, labels = np.asarray(file["fts"]), np.asarray(file["labels"]).ravel()
    if counts.ndim != 2 or counts.shape[1] != WORDS or counts.min() < 0 or counts.max() > 255:
        raise ValueError(f"fts of {counts.dtype} {counts.shape}; expected counts (N, {WORDS}) from 0 to 255")
    return LabeledArrays(counts.astype(np.uint8), (labels - 1).astype(np.uint8))


def to_hellinger(batch: Batch) -> Batch:
    """Return a batch with its counts (batch, 800) as :func:`hellinger` features."""
    return {**batch, "x": hellinger(batch["x"].float())}


def hellinger(counts: Tensor) -> Tensor:
    """Return (batch, words) as square roots of ``words`` times each word's frequency; zeros where all counts are 0.

    Values are about 1 where all words are equally frequent.
    """
    frequencies = counts / counts.sum(1, keepdim=True).clamp_min(1)
    return (frequencies * counts.shape[1]).sqrt()


def drop_keypoints(batch: Batch) -> Batch:
    """Return a random view: only a random fraction of each image's key points is kept, then as :func:`to_hellinger`."""
    counts = batch["x"].float()
    keep = torch.empty(len(counts), 1).uniform_(*KEEP_FRACTION)
    return {**batch, "x": hellinger(torch.binomial(counts, keep.expand_as(counts)))}


def _same(counts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return counts


OFFICE = DomainSuite(
    name="office",
    domains=("amazon", "caltech10", "webcam", "dslr"),
    classes=(
        "backpack",
        "touring bike",
        "calculator",
        "headphones",
        "computer keyboard",
        "laptop",
        "computer monitor",
        "computer mouse",
        "coffee mug",
        "video projector",
    ),
    folder="office_caltech",
    train_fraction=0.5,
    embedded={"train": MAX_EXAMPLES, "test": MAX_EXAMPLES},
    read_domain=_read_domain,
    unpack=_same,
    to_float=to_hellinger,
)
