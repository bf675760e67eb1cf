"""Few-shot episodes: some classes, a few labeled support images of each, and query images of the same classes.

Episodes are a function of the seed and of the labels alone, so every method is tested on the same ones, and differences
between two methods are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.errors import DataError
from fedlab.seeds import seeded


@dataclass(frozen=True)
class Episodes:
    """Row numbers of images, class by class: class k has columns ``k * shots`` to ``(k + 1) * shots`` of ``support``.

    Attributes
    ----------
    support, query
        (episodes, ways * shots) and (episodes, ways * queries).
    ways
        Classes of an episode.
    """

    support: Tensor
    query: Tensor
    ways: int

    def labels(self, rows: Tensor) -> Tensor:
        """Return class numbers 0..ways-1 of the columns of ``support`` or ``query``, (columns,)."""
        return torch.arange(self.ways).repeat_interleave(rows.shape[1] // self.ways)


def check_episodes(y: Tensor, ways: int, shots: int, queries: int) -> tuple[Tensor, Tensor]:
    """Return the classes of labels (N,) and the number of images of each, where episodes can be sampled from them.

    Raises
    ------
    DataError
        When there are fewer classes than ways, or a class has fewer images than shots + queries.
    """
    classes, counts = torch.unique(y, return_counts=True)
    if len(classes) < ways:
        raise DataError(
            f"episodes of {ways} classes cannot be sampled from {len(classes)}; lower fewshot.ways, or use a target "
            "with more classes"
        )
    wanted = shots + queries
    if int(counts.min()) < wanted:
        few = int(counts.argmin())
        raise DataError(
            f"class {int(classes[few])} has {int(counts[few])} images for episodes, and {shots} shots with {queries} "
            f"queries take {wanted}; lower fewshot.shots, fewshot.queries or fewshot.unlabeled_fraction"
        )
    return classes, counts


def sample_episodes(y: Tensor, *, ways: int, shots: int, queries: int, episodes: int, seed: int) -> Episodes:
    """Return random episodes: classes without replacement, and within a class images without replacement.

    Parameters
    ----------
    y
        Labels (N,).
    ways, shots, queries
        Classes of an episode, and support and query images of each class.
    episodes
        Number of episodes.
    seed
        Seed of the episodes; the ambient random stream is left alone.

    Raises
    ------
    DataError
        As :func:`check_episodes`.
    """
    classes, counts = check_episodes(y, ways, shots, queries)
    wanted = shots + queries
    members = y.sort(stable=True).indices  # rows in the order of classes
    table = torch.zeros(len(classes), int(counts.max()), dtype=torch.long)
    filled = torch.arange(table.shape[1]) < counts[:, None]
    table[filled] = members
    with seeded("episodes", seed, ways, shots, queries):
        chosen = torch.rand(episodes, len(classes)).topk(ways).indices  # (episodes, ways)
        keys = torch.rand(episodes, ways, table.shape[1]).masked_fill(~filled[chosen], -1)
        places = keys.topk(wanted).indices  # (episodes, ways, shots + queries)
    rows = table[chosen].gather(2, places)
    return Episodes(rows[..., :shots].flatten(1), rows[..., shots:].flatten(1), ways)


class EpisodeDataset(ArrayDataset):
    """A labeled data set whose training batches are episodes instead of independent examples.

    A batch of ``size`` holds size // 10 classes, ten examples of each, class by class.
    """

    PER_CLASS = 10

    def sample_batch(self, size: int) -> Batch:
        """Return one episode from torch's current random stream."""
        half = self.PER_CLASS // 2
        y = self.columns["y"].cpu()
        ways = min(max(2, size // self.PER_CLASS), len(torch.unique(y)))
        seed = int(torch.randint(2**31, (1,)))
        episode = sample_episodes(y, ways=ways, shots=half, queries=half, episodes=1, seed=seed)
        rows_of = [rows.view(ways, half) for rows in (episode.support, episode.query)]
        return self[torch.cat(rows_of, 1).flatten()]
