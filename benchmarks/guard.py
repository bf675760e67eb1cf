"""Which label-free rule knows when a client's adaptation pays? Every pair of domains at hand, judged afterwards.

    FEDLAB_DATA=DATA python -m benchmarks.guard --groups pacs photos office
    python -m benchmarks.guard --groups digits               # the sets in the package
    python -m benchmarks.guard --groups                      # adapts nothing: the tables of what is there

A case is one source, one target and one seed: source only, then ``source_free`` without its guard on the target's
client, with the bits that it has in a run. Kept of it are features and predictions of the G that was sent, of the new
one, of those with weights between them and, if asked for, of a second training, and the labels to judge them by. A
rule is chosen on all groups of cases but one and judged on that one, for each group in turn. Cases that are already in
``--runs`` are read, not repeated; the tables are of all that were collected with the same overrides.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import cells, guard_rules
from benchmarks.adapted_clients import FinishedRun
from benchmarks.client_adaptation import PROXIES
from benchmarks.guard_rules import AGAIN, OPTIONS, SHARES, accuracy, mixed
from fedlab.comparison.grid import config_hash
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.data.images.office import OFFICE
from fedlab.data.images.pacs import PACS
from fedlab.models.batchnorm_stats import encode
from fedlab.models.feature_classifier import probabilities
from fedlab.seeds import seeded
from fedlab.strategies.client_adaptation.source_free import Options, interpolated, train_copy
from fedlab.strategies.client_adaptation.spec import AdaptationSpec, Adapted, Client

DIGITS = ("mnist", "usps", "mnist_m", "optdigits", "synthdigits")
PAIRS = 2  # random views of each example that are kept
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """A source with its targets."""

    group: str
    preset: str
    options: Mapping[str, Value]


def settings() -> Iterator[Setting]:
    """Every source and its targets, by group."""
    yield Setting("proxies", "source-only-digits", {"digits.source": "mnist", "digits.targets": PROXIES})
    for source in DIGITS:
        targets = ",".join(name for name in DIGITS if name != source)
        yield Setting("digits", "source-only-digits", {"digits.source": source, "digits.targets": targets})
    for source in PACS.domains:
        yield Setting("pacs", "source-only-pacs", {"pacs.source": source})
        photos: Mapping[str, Value] = {
            "strategy": "source_only",
            "image_folder.bottleneck": 256,
            "image_folder.source": source,
        }
        yield Setting("photos", "adapt-photos", photos)
    for source in OFFICE.domains:
        yield Setting("office", "source-only-office", {"office.source": source})


def collect(setting: Setting, seed: int, asked: argparse.Namespace) -> None:
    """Adapt each client of a setting, or some targets alone, and keep its outputs, one file a client."""
    shared: Mapping[str, Value] = {"threads": 1, **parse_overrides(asked.overrides)}
    overrides = {**shared, **setting.options, "seed": seed, "evaluate_every": 100}
    run = FinishedRun(cells.one_run(setting.preset, overrides, asked.runs))
    for partition, name in enumerate(run.workload.clients):
        path = folder_of(asked) / f"{setting.group}-{run.workload.source}-{name}-{seed}.pt"
        if name in (asked.targets or [name]) and not path.exists():
            keep(case(run, setting.group, partition, asked.again), path)


def folder_of(asked: argparse.Namespace) -> Path:
    """Where cases of these overrides are kept: those of others stand in no table of theirs."""
    given = parse_overrides(asked.overrides)
    folder: Path = asked.runs / (f"guard-{config_hash(given)}" if given else "guard")
    return folder


def case(run: FinishedRun, group: str, partition: int, again: bool = False) -> dict[Any, Any]:
    """Adapt one client; return its outputs before and after, on its training and test data, and the labels.

    ``again``: train a second time, half the steps with other random numbers.
    """
    workload, seed, test = run.workload, run.config.run.seed, run.workload.data(partition, "test")
    found: dict[Any, Any] = {
        "source": workload.source,
        "target": workload.clients[partition],
        "group": group,
        "seed": seed,
        "labels": {"train": workload.labels(partition), "test": test[:]["y"]},
    }

    def both(client: Client, options: Options) -> Adapted:
        client = replace(client, data=client.data.without("y").subsample(options.max_examples))
        old, new, _ = train_copy(client, options)
        between = {
            mixed(share): interpolated(old, new, client, replace(options, interpolation=share)) for share in SHARES
        }
        models = {"sent": client.features.eval(), "old": old, "new": new, **between}
        if again:
            with seeded(seed, AGAIN, partition):
                _, models[AGAIN], _ = train_copy(client, replace(options, steps=options.steps // 2))
        with seeded(seed, "guard", partition):
            for title, features in models.items():
                for part, examples in (("train", client.data), ("test", test.without("y"))):
                    found[title, part] = outputs(features, replace(client, data=examples))
        return Adapted(new)

    run.adapt(partition, AdaptationSpec(Options, both), OPTIONS)
    return found


def keep(found: dict[Any, Any], path: Path) -> None:
    """Write a case's file, and say what came out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)
    titles = dict.fromkeys(title for title, part in (key for key in found if isinstance(key, tuple)))
    print(path.name, *(f"{title} {accuracy(found, title):.1f}" for title in titles), flush=True)


@torch.no_grad()
def outputs(features: nn.Module, client: Client) -> dict[str, torch.Tensor]:
    """Features and probabilities of a client's examples, and probabilities (views, examples, classes) of views."""
    z, head = encode(features, client.data, CPU), client.frozen_head()
    rows = torch.split(torch.arange(len(client.data)), 500)
    views = [torch.cat([probabilities(head, features.eval()(client.view_of(r))) for r in rows]) for _ in range(PAIRS)]
    return {"z": z.half(), "p": probabilities(head, z), "views": torch.stack(views)}


def main() -> None:
    """Adapt what is missing and print the tables."""
    parser = cells.parser(__doc__, "runs/guard")
    parser.set_defaults(seeds=[0])
    parser.add_argument("--groups", nargs="*", default=list(dict.fromkeys(one.group for one in settings())))
    parser.add_argument("--sources", nargs="+", help="some sources alone")
    parser.add_argument("--targets", nargs="+", default=[], help="some targets alone")
    parser.add_argument("--again", action="store_true", help="of new cases, a second training of half the steps, too")
    options = parser.parse_args()
    for seed in options.seeds:
        for setting in settings():
            source = next(value for name, value in setting.options.items() if name.endswith(".source"))
            if setting.group in options.groups and source in (options.sources or [source]):
                collect(setting, seed, options)
    files = sorted(folder_of(options).glob("*.pt"))
    guard_rules.show([guard_rules.case_of(file) for file in files])


if __name__ == "__main__":
    main()
