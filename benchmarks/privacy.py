"""The cost of local privacy: accuracy by epsilon and by the number of examples that a client has.

    python -m benchmarks.privacy                                        # minutes on one core
    python -m benchmarks.privacy --examples 300 --epsilon none 8 --mechanisms moments --draws 10

One round of the preset's clients after the server's pre-training, each with a random part of its domain's training
images; the same model, images and test sets for every line. Set FEDLAB_DATA to a folder of whole sets, or no client
has 6,000 images; the line below the table says which clients have fewer than a column asks for. Epsilon is that of
each example over a run of as many rounds as the preset has, at delta 1e-5: the noise is that of one of these rounds.
*off* is DualAdapt's upload as it is. *moments* and *gradients* are the values of ``dualadapt.local_privacy``; *none*
goes the same way without noise, so that it shows what the detour costs by itself (of gradients: clipping, samples,
and labels of F_g's own). Accuracy is that of F_g and F_l together (``average``) on the clients' test images, in
percent, mean over clients; F_g alone is in the last line.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks import cells
from benchmarks.membership import CPU, PRESET, Public, public_model
from fedlab import launch
from fedlab.config.presets import parse_overrides
from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import EnsembleHead, features_of
from fedlab.privacy.accounting import Release
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.dualadapt.client import HeadWork, client_features, protected, run
from fedlab.strategies.dualadapt.private import release_of
from fedlab.strategies.protocol import load

OFF = "off"
MECHANISMS = (OFF, "moments", "gradients")
NOISELESS = 1e-6  # a noise multiplier without effect


@dataclass(frozen=True, eq=False)
class Client:
    """A client with some of its training images: features under the server's statistics, and its test features.

    ``own`` and ``test`` are under the client's own statistics, as it trains without privacy and as it predicts.
    """

    plain: torch.Tensor
    own: torch.Tensor
    test: ArrayDataset


def client_of(config: Config, partition: int, images: ArrayDataset, state: dict[str, torch.Tensor]) -> Client:
    """Encode one client's images."""
    options = config.strategy
    model = load(config.workload.model(), state, CPU)
    plain = encode(features_of(model), images, CPU)
    own = client_features(model, images, options, CPU)
    adapt_batchnorm(features_of(model), images, options.bn_images, options.bn_adaptation, CPU)
    test = config.workload.data(partition, "test")
    return Client(plain, own, ArrayDataset({"x": encode(features_of(model), test, CPU), "y": test.columns["y"]}))


def release_for(config: Config, mechanism: str, epsilon: str) -> Release:
    """Return what a client releases in a round by one mechanism; without noise if ``epsilon`` is none."""
    budget = replace(config.dp, max_epsilon=8.0 if epsilon == "none" else float(epsilon))
    found = release_of(replace(config, dp=budget, strategy=replace(config.strategy, local_privacy=mechanism)))
    assert found is not None
    if epsilon != "none":
        return found
    return replace(found, noise_multiplier=NOISELESS, gradient_noise=NOISELESS)


def accuracies(config: Config, client: Client, public: Public, releases: Sequence[Release | None]) -> list[float]:
    """Percent of the test images that F_g and F_l together classify, by release; F_g alone last."""
    found = []
    for release in releases:
        own = client.own if release is None else client.plain
        work = HeadWork(public.head, own, public.source, public.quantiles, config.strategy, config.client)
        if release is not None:
            work = protected(work, client.plain, release, secret=False)
        local = run(work).local
        assert local is not None
        found.append(config.workload.evaluate(EnsembleHead(public.head, local), client.test)["accuracy"])
    found.append(config.workload.evaluate(public.head, client.test)["accuracy"])
    return [100 * value for value in found]


def fewer_images(config: Config, counts: Sequence[int]) -> list[str]:
    """A sentence for each client that has fewer training images than one of these columns says."""
    own = {name: len(config.workload.data(partition, "train")) for partition, name in enumerate(config.clients)}
    return [
        f"{name} has {size:,} images where {count:,} are asked for"
        for count in counts
        for name, size in own.items()
        if size < count
    ]


def main() -> None:
    """Measure what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value of the run")
    parser.add_argument("--examples", type=int, nargs="+", default=[300, 1000, 6000])
    parser.add_argument("--epsilon", nargs="+", default=["none", "8", "3", "1"], help="none, or numbers")
    parser.add_argument("--mechanisms", nargs="+", default=list(MECHANISMS), choices=MECHANISMS)
    parser.add_argument("--draws", type=int, default=3, help="random parts of a client's images, each with its noise")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), help="where the pre-training is kept")
    options = parser.parse_args()
    config = launch.resolve_config(
        PRESET, {"threads": 1, "dualadapt.source_only_twin": False, **parse_overrides(options.overrides)}
    )
    private = [one for one in itertools.product(options.mechanisms, options.epsilon) if one[0] != OFF]
    releases: list[Release | None] = [release_for(config, *one) for one in private]
    lines = [*(" ".join(one) for one in private), "F_g alone"]
    if OFF in options.mechanisms:
        releases, lines = [None, *releases], [OFF, *lines]
    table = cells.table(
        f"accuracy in percent, mean of {options.draws} draws",
        ("epsilon", *(f"{n:,} examples" for n in options.examples)),
    )
    console = Console(width=120)
    with deterministic(1):
        public, state = public_model(config, options.runs / "pretrained")
        columns = []
        for count in options.examples:
            draws = []
            for draw in range(options.draws):
                by_client = []
                for partition in range(len(config.clients)):
                    whole = config.workload.data(partition, "train")
                    with seeded(config.run.seed, "privacy", count, draw, partition):
                        images = whole.select(torch.randperm(len(whole))[:count])
                        client = client_of(config, partition, images, state)
                        by_client.append(accuracies(config, client, public, releases))
                draws.append(np.mean(by_client, 0))
                found = ", ".join(f"{line} {value:.1f}" for line, value in zip(lines, draws[-1], strict=True))
                console.print(f"{count:,} examples, draw {draw}: {found}")
            columns.append(np.array(draws))  # (draws, lines)
    for number, line in enumerate(lines):
        table.add_row(line, *(cells.spread(column[:, number]) for column in columns))
    table.caption = "; ".join(fewer_images(config, options.examples))
    console.print(table)


if __name__ == "__main__":
    main()
