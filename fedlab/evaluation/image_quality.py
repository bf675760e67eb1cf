"""Quality of generated images in a feature space: Frechet distance, precision and recall, labels.

**Source**: Heusel et al., GANs Trained by a Two Time-Scale Update Rule, NeurIPS 2017, for the distance; Kynkaanniemi et
al., Improved Precision and Recall Metric for Assessing Generative Models, NeurIPS 2019, for the other two: a sample is
precise if it is no further from some real image than that image's k-th neighbor among the real ones, and recall is
the same the other way round. **Departures**: (1) features come from a small classifier of digits and not from
Inception, so that numbers compare runs of one workload and nothing published; (2) k-th neighbors do not count an
image itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlab.evaluation.distances import frechet

NUM_NEIGHBORS = 3  # k


def knn_radii(features: Tensor, neighbors: int = NUM_NEIGHBORS) -> Tensor:
    """Return the distance (images,) of each row of (images, dimensions) to its k-th nearest other row.

    Raises
    ------
    ValueError
        When there are not more rows than neighbors.
    """
    if len(features) <= neighbors:
        raise ValueError(f"{len(features)} images have no {neighbors} neighbors each; take more")
    return pairwise_distances(features, features).fill_diagonal_(0.0).topk(neighbors + 1, largest=False).values[:, -1]


def coverage(points: Tensor, centers: Tensor, radii: Tensor) -> float:
    """Return the fraction of ``points`` (n, dimensions) within ``radii`` (m,) of any of ``centers`` (m, dimensions)."""
    return float((pairwise_distances(points, centers) <= radii).any(1).double().mean())


def pairwise_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances (n, m), float64 and without the shortcut that rounds small ones to 0."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def distribution_metrics(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Return ``frechet``, ``precision`` and ``recall`` of generated against real images, from features (n, dimensions).

    All three depend on the number of images: compare at equal numbers only, and with those of real images.

    Raises
    ------
    ValueError
        When a side has not more images than neighbors.
    """
    return {
        "frechet": frechet(generated.double().numpy(), real.double().numpy()),
        "precision": coverage(generated, real, knn_radii(real)),
        "recall": coverage(real, generated, knn_radii(generated)),
    }


def label_distances(labels: Tensor, mixture: NDArray[np.float64]) -> Mapping[str, float]:
    """Return distances of labels (n,) from a mixture (classes,) that sums to 1.

    ``label_distance`` is the total variation: 0 equal, 1 disjoint. ``label_kl`` is KL(labels || mixture) in nats; a
    class that the mixture lacks counts as half an image there, or a single one would make it infinite.
    """
    found = np.bincount(labels.numpy(), minlength=len(mixture)) / len(labels)
    some = found > 0
    floor = np.maximum(mixture, 0.5 / len(labels))
    return {
        "label_distance": float(0.5 * np.abs(found - mixture).sum()),
        "label_kl": float((found[some] * np.log(found[some] / floor[some])).sum()),
    }
