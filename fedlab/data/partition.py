"""One labelled set split over clients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedlab.errors import ConfigError
from fedlab.seeds import seed_of

MIN_EXAMPLES = 10  # a client with fewer cannot train or be tested
DRAWS = 100


def dirichlet_shards(labels: Tensor, shards: int, alpha: float, seed: int) -> list[Tensor]:
    """Split rows so that each class is shared out by a draw from Dirichlet(alpha): small alpha, skewed labels.

    Parameters
    ----------
    labels
        Integer labels (examples,).
    alpha
        Concentration; ``inf`` shares every class equally.

    Returns
    -------
    list of Tensor
        Row numbers of each shard, disjoint and together all rows, each sorted.

    Raises
    ------
    ConfigError
        When there are too few examples, or no draw of 100 gives every shard at least 10.

    **Source**: Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution, 2019, section 3.
    """
    if len(labels) < shards * MIN_EXAMPLES:
        raise ConfigError(
            f"{len(labels)} examples cannot be split into {shards} shards of at least {MIN_EXAMPLES}; "
            "ask for fewer shards"
        )
    generator = np.random.default_rng(seed_of(seed, "dirichlet", shards))
    classes = [np.flatnonzero(labels.numpy() == label) for label in torch.unique(labels).tolist()]
    for _ in range(DRAWS):
        parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(shards)]
        for rows in classes:
            shares = np.full(shards, 1 / shards) if np.isinf(alpha) else generator.dirichlet(np.full(shards, alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for shard, piece in enumerate(np.split(generator.permutation(rows), cuts)):
                parts[shard].append(piece)
        joined = [np.sort(np.concatenate(pieces)) for pieces in parts]
        if min(map(len, joined)) >= MIN_EXAMPLES:
            return [torch.from_numpy(rows) for rows in joined]
    raise ConfigError(
        f"no split of {len(labels)} examples into {shards} shards with alpha={alpha:g} gave every shard "
        f"{MIN_EXAMPLES} examples in {DRAWS} draws; raise alpha or ask for fewer shards"
    )


def even_shards(count: int, shards: int, seed: int) -> list[Tensor]:
    """Row numbers 0..count-1 shared out at random, as evenly as possible; each shard sorted.

    Raises
    ------
    ConfigError
        When a shard would get fewer than 10.
    """
    if count < shards * MIN_EXAMPLES:
        raise ConfigError(
            f"{count} examples cannot be split over {shards} clients with at least {MIN_EXAMPLES} each; "
            "use fewer clients"
        )
    order = np.random.default_rng(seed_of(seed, "even shards", shards)).permutation(count)
    return [torch.from_numpy(np.sort(part)) for part in np.array_split(order, shards)]
