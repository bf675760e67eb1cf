"""Which label-free rule knows when a client's adaptation pays? Every pair of domains at hand, judged afterwards.

    FEDLAB_DATA=DATA python -m benchmarks.guard --groups pacs photos office
    python -m benchmarks.guard --groups digits               # the sets in the package
    python -m benchmarks.guard --groups                      # adapts nothing: the tables of what is there

A case is one source, one target and one seed: source only, then ``source_free`` without its guard on the target's
client. Kept of it are features and predictions of the G that was sent and of the new one, and the labels to judge both
by. A rule is chosen on all groups of cases but one and judged on that one, for each group in turn. Cases that are
already in ``--runs`` are read, not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import cells, guard_rules
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.data.images.office import OFFICE
from fedlab.data.images.pacs import PACS
from fedlab.launch import saved_config
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import features_of, head_of, probabilities
from fedlab.registry import load_config
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.client_adaptation.source_free import Options, label, train_features
from fedlab.strategies.client_adaptation.spec import Client
from fedlab.strategies.client_adaptation.wrapper import STREAM, views_of
from fedlab.strategies.protocol import load

PROXIES = "proxy_color,proxy_texture,proxy_lowres,proxy_tight"
DIGITS = ("mnist", "usps", "mnist_m", "optdigits", "synthdigits")
PAIRS = 2  # random views of each example that are kept
CPU = torch.device("cpu")
OPTIONS: Options = load_config({"strategy": "source_free"}).adaptation


@dataclass(frozen=True)
class Setting:
    """A source with its targets."""

    group: str
    preset: str
    options: Mapping[str, Value]


def settings() -> Iterator[Setting]:
    """Every source and its targets, by group."""
    for source in ("mnist", *DIGITS[1:]):
        targets = ",".join(name for name in DIGITS if name != source)
        if source == "mnist":
            targets = PROXIES + "," + targets
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


def collect(setting: Setting, seed: int, shared: Mapping[str, Value], runs: Path) -> None:
    """Adapt each client of a setting and keep its outputs, one file a client."""
    overrides = {**shared, **setting.options, "seed": seed, "evaluate_every": 100}
    result = cells.one_run(setting.preset, overrides, runs)
    directory = RunDirectory.open(result.directory)
    config, last = saved_config(directory), directory.checkpoints.rounds()[-1]
    arrays, workload = directory.checkpoints.load(last)["arrays"], config.workload
    for partition, name in enumerate(workload.clients):
        path = runs / "guard" / f"{setting.group}-{workload.source}-{name}-{seed}.pt"
        if path.exists():
            continue
        with deterministic(config.run.threads):
            model = load(workload.model(), arrays, CPU).eval()
            data = workload.data(partition, "train").without("y").subsample(OPTIONS.max_examples)
            client = Client(features_of(model), head_of(model), data, *views_of(workload), CPU)
            with seeded(seed, STREAM, last, partition):
                old, new = adapted(client, OPTIONS)
            test = workload.data(partition, "test")
            found: dict[Any, Any] = {
                "source": workload.source,
                "target": name,
                "group": setting.group,
                "seed": seed,
                "labels": {"train": workload.labels(partition), "test": test[:]["y"]},
                "head": head_of(model).state_dict(),
            }
            with seeded(seed, "guard", partition):
                for title, features in (("sent", features_of(model)), ("old", old), ("new", new)):
                    for part, examples in (("train", data), ("test", test.without("y"))):
                        found[title, part] = outputs(features, replace(client, data=examples))
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
        print(path.name, *(f"{title} {accuracy(found, title):.1f}" for title in ("sent", "old", "new")), flush=True)


def adapted(client: Client, options: Options) -> tuple[nn.Module, nn.Module]:
    """Return G with the client's own statistics, and the G that ``source_free`` trains from it."""
    old = client.trainable_features()
    adapt_batchnorm(old, client.data, options.bn_images, options.bn_adaptation, CPU)
    head = client.frozen_head()
    new = train_features(deepcopy(old), head, client, options, label(old, head, client, options))
    return old.requires_grad_(False).eval(), new


@torch.no_grad()
def outputs(features: nn.Module, client: Client) -> dict[str, torch.Tensor]:
    """Features and probabilities of a client's examples, and probabilities (views, examples, classes) of views."""
    z, head = encode(features, client.data, CPU), client.frozen_head()
    rows = torch.split(torch.arange(len(client.data)), 500)
    views = [torch.cat([probabilities(head, features.eval()(client.view_of(r))) for r in rows]) for _ in range(PAIRS)]
    return {"z": z.half(), "p": probabilities(head, z), "views": torch.stack(views)}


def accuracy(case: Any, title: str, part: str = "test") -> float:
    """Accuracy of a model in percent."""
    right = case[title, part]["p"].argmax(1) == case["labels"][part]
    return 100 * float(right.double().mean())


def main() -> None:
    """Adapt what is missing and print the tables."""
    parser = cells.parser(__doc__, "runs/guard")
    parser.set_defaults(seeds=[0])
    parser.add_argument("--groups", nargs="*", default=list(dict.fromkeys(one.group for one in settings())))
    parser.add_argument("--sources", nargs="+", help="some sources alone")
    options = parser.parse_args()
    shared = {"threads": 1, **parse_overrides(options.overrides)}
    for seed in options.seeds:
        for setting in settings():
            source = next(value for name, value in setting.options.items() if name.endswith(".source"))
            if setting.group in options.groups and source in (options.sources or [source]):
                collect(setting, seed, shared, options.runs)
    files = sorted((options.runs / "guard").glob("*.pt"))
    guard_rules.show([guard_rules.case_of(file) for file in files])


if __name__ == "__main__":
    main()
