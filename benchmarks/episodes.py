"""What evaluation and augmentation cost: all heads at once against a loop, batched views against torchvision's.

    python -m benchmarks.episodes
    python -m benchmarks.episodes --shots 1 5 20 --width 512 --threads 2

The loop is the published evaluation, one ``torch.optim.SGD`` on one ``nn.Linear`` for each episode. Ratios of one run
on one machine; both sides on random features and images, for speed does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from fedlab.data.images import views
from fedlab.models.linear_classifiers import PUBLISHED, fit_linear_classifiers, init_classifiers


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call, after one that warms up."""
    work()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def loop(support: torch.Tensor, labels: torch.Tensor) -> None:
    """Train heads one episode after another."""
    for z in support:
        head = nn.Linear(z.shape[1], int(labels.max()) + 1)
        optimizer = torch.optim.SGD(
            head.parameters(),
            PUBLISHED.learning_rate,
            momentum=PUBLISHED.momentum,
            dampening=PUBLISHED.dampening,
            weight_decay=PUBLISHED.weight_decay,
        )
        for _ in range(PUBLISHED.epochs):
            for rows in torch.randperm(len(z)).split(PUBLISHED.batch):
                optimizer.zero_grad()
                cross_entropy(head(z[rows]), labels[rows]).backward()
                optimizer.step()


def main() -> None:
    """Time both and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--width", type=int, default=512, help="dimensions of features")
    parser.add_argument("--episodes", type=int, default=600, help="episodes at once")
    parser.add_argument("--looped", type=int, default=3, help="episodes that the loop is timed on")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    table = Table(title=f"episodes a second, 5 ways, {options.width} features, {options.threads} threads")
    for head in ("shots", "plain loop", f"{options.episodes} at once", "ratio"):
        table.add_column(head, justify="right")
    for shots in options.shots:
        labels = torch.arange(5).repeat_interleave(shots)
        support = torch.rand(options.episodes, 5 * shots, options.width)
        query = torch.rand(options.episodes, 75, options.width)
        one = options.looped / seconds(lambda s=support, y=labels: loop(s[: options.looped], y))

        def batched(s: torch.Tensor = support, y: torch.Tensor = labels, q: torch.Tensor = query) -> torch.Tensor:
            return fit_linear_classifiers(s, y, q, init_classifiers(len(s), 5, s.shape[1], s.shape[2]))

        many = options.episodes / seconds(batched)
        table.add_row(str(shots), f"{one:.2f}", f"{many:.0f}", f"{many / one:.0f}")
    Console().print(table)

    transforms = v2.Compose(
        [v2.RandomResizedCrop(32), v2.ColorJitter(0.4, 0.4, 0.4), v2.RandomHorizontalFlip()]
    )  # one set of parameters a call
    table = Table(title="views a second, batches of 256, crop, jitter and mirror, each image its own")
    for head in ("pixels", "torchvision v2, image by image", "batched", "ratio"):
        table.add_column(head, justify="right")
    for size in (32, 64):
        transforms.transforms[0].size = [size, size]
        x = torch.rand(256, 3, size, size)
        one = 256 / seconds(lambda x=x: [transforms(image) for image in x])
        many = 256 / seconds(lambda x=x: views.random_view(2 * x - 1, 0.08, 0.4, True))
        table.add_row(str(size), f"{one:.0f}", f"{many:.0f}", f"{many / one:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
