"""Is a Mixer resistant to permuted pixels, and why pre-train it? A Mixer beside a convolutional network and a ViT.

    FEDLAB_DATA=... python -m benchmarks.mixer permutations --figure docs/images/mixer-permutations.png
    FEDLAB_DATA=... python -m benchmarks.mixer sizes --figure docs/images/mixer-sizes.png
    python -m benchmarks.mixer permutations --set mnist        # inside the package

``permutations``: pixels are permuted alike in all training and test images, within patches and patch by patch, or over
the whole image; and, the negative control, in test images alone. ``sizes``: from few training images to all, each
network from scratch and after pre-training on another set (Tiny-ImageNet for CIFAR-10, Omniglot for digits).

Every training has the same number of steps, batches and views for all networks, and one step size for each network,
``--rates``, of which fine-tuning takes a fourth. Each one stays in ``--runs`` as a file, and one that is there is read,
not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import cells, mixer_pictures
from benchmarks.permutations import permute_pixels, pixel_permutation
from fedlab.comparison.grid import config_hash
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.digits import datasets
from fedlab.data.images import image_sets, views
from fedlab.data.images.image_sets import LabeledImages
from fedlab.data.pixels import to_rgb_float
from fedlab.files import write_atomically
from fedlab.models.convnet import ConvNet
from fedlab.models.feature_classifier import features_of
from fedlab.models.mixer import SMALL, Mixer, permute_patch_weights
from fedlab.models.vit import ViT
from fedlab.runs import pretrain_cache
from fedlab.seeds import deterministic, seeded
from fedlab.training import train_steps
from fedlab.workloads.domain_suite import accuracy_and_loss

SHAPE = SMALL["tiny"]
NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {  # by number of classes; about 100,000 weights each
    "Mixer": lambda classes: Mixer(classes, 32, SHAPE),
    "ConvNet": lambda classes: ConvNet(classes, "group", 16),
    "ViT": lambda classes: ViT(classes, 32),
}
MOVED = "patches, weights too"  # the exact symmetry: the initial weights go where the pixels go
PERMUTED = ("plain", "patches", "pixels")
BEFORE = {"cifar10": "tiny_imagenet"}  # what is pre-trained on; for digits Omniglot
SIZES = {"cifar10": (100, 500, 5000)}
FINER = 4  # fine-tuning takes a fourth of the step size: features are there to be kept
PART = 25  # steps that one point of a loss curve is the mean of


@dataclass(frozen=True)
class Job:
    """One training: all that its result depends on."""

    set: str
    network: str
    rate: float
    steps: int
    seed: int
    kind: str = "plain"  # of the arrangement of pixels
    images: int = 0  # to train on; 0: all
    before: str = ""  # the set that its features were trained on first
    before_steps: int = 0
    batch: int = 64


def images_of(name: str, split: str) -> LabeledImages:
    """Images and labels of one set, 32 pixels a side."""
    root = datasets.data_root()
    if name in datasets.DOMAINS:
        columns = datasets.load_digits(name, split, root, with_labels=True).columns
        return LabeledImages(columns["x"], columns["y"])
    return image_sets.load_image_set(name, root, split != "train", 32)


def examples(images: LabeledImages, order: Tensor, mirror: bool | None) -> ArrayDataset:
    """Floats in [-1, 1] with pixels arranged, after a random view unless ``mirror`` is None."""

    def read(batch: Batch) -> Batch:
        x = to_rgb_float(batch)["x"]
        if mirror is not None:  # before the pixels move: a crop of permuted ones would be none
            x = views.random_view(x, 0.8, 0.0, mirror)
        return {"x": permute_pixels(x, order), "y": batch["y"]}

    return ArrayDataset({"x": images.x, "y": images.y}, read)


def mirrored(name: str) -> bool:
    """Return True if half of a set's images may be mirrored; digits and characters may not."""
    return name not in datasets.DOMAINS and name != "omniglot"


def learn(model: nn.Module, data: ArrayDataset, job: Job, name: str) -> list[float]:
    """One cycle of Adam; losses, each a mean of ``PART`` steps."""
    optimizer = torch.optim.Adam(model.train().parameters(), job.rate)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.rate, job.steps, pct_start=0.1, final_div_factor=10)
    losses: list[float] = []

    def loss() -> Tensor:
        with seeded(name, job.seed, len(losses)):
            batch = data.sample_batch(job.batch)
            value = cross_entropy(model(batch["x"]), batch["y"])
        losses.append(float(value.detach()))
        return value

    train_steps(loss, optimizer, job.steps, name=name, after_step=plan.step)
    return [float(np.mean(losses[start : start + PART])) for start in range(0, job.steps, PART)]


def run(job: Job, runs: Path, threads: int) -> dict[str, Any]:
    """Curve and accuracies of a training, read from disk where they are there."""
    path = runs / f"{job.network}-{config_hash([asdict(job), 'drawn test images'])}-{job.seed}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    with deterministic(threads):
        found = trained(job, runs)
    runs.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({**asdict(job), **found}).encode())
    return found


def start_of(job: Job, classes: int, runs: Path) -> nn.Module:
    """The network that a training begins with."""
    with seeded("start", job.seed):
        model = NETWORKS[job.network](classes)
    if job.before:
        features_of(model).load_state_dict(pretrained(job, runs))
    return model


def pretrained(job: Job, runs: Path) -> Mapping[str, Tensor]:
    """Features that learned another set; trained once for all sizes of a seed."""
    first = Job(job.before, job.network, FINER * job.rate, job.before_steps, job.seed, batch=job.batch)

    def make() -> dict[str, Any]:
        images = images_of(job.before, "train")
        with seeded("start", job.seed):
            model = NETWORKS[job.network](int(images.y.max()) + 1)
        order = pixel_permutation("plain", 32, SHAPE.patch, job.seed)
        learn(model, examples(images, order, mirrored(job.before)), first, "before")
        return features_of(model).state_dict()

    with pretrain_cache.use_cache(str(runs / "pretrained")):
        return pretrain_cache.get_or_compute(
            lambda: f"{job.network}-{config_hash([asdict(first)])}", make, torch.device("cpu")
        )


def trained(job: Job, runs: Path) -> dict[str, Any]:
    """Train and test; a network that learned from plain images is tested on permuted ones, too."""
    images, test = images_of(job.set, "train"), images_of(job.set, "test")
    kind = "patches" if job.kind == MOVED else job.kind
    orders = {name: pixel_permutation(name, 32, SHAPE.patch, job.seed) for name in (*PERMUTED, "within patches")}
    model = start_of(job, int(images.y.max()) + 1, runs)
    if job.kind == MOVED:
        model.load_state_dict(permute_patch_weights(model.state_dict(), orders[kind], SHAPE))
    if job.images and job.images < len(images.y):
        images = drawn(images, job.images, "some images", job.seed)
    curve = learn(model, examples(images, orders[kind], mirrored(job.set)), job, "learn")
    test = drawn(test, TESTED, "test images")

    def accuracy(name: str) -> float:
        return 100 * accuracy_and_loss(model, examples(test, orders[name], None))["accuracy"]

    found: dict[str, Any] = {"curve": curve, "accuracy": accuracy(kind)}
    if job.kind == "plain" and not job.images and not job.before:
        found["permuted at test"] = {name: accuracy(name) for name in ("within patches", "patches", "pixels")}
    return found


def drawn(images: LabeledImages, count: int, *stream: str | int) -> LabeledImages:
    """At most so many images, drawn at random from a stream of this name: a set may be sorted by class."""
    if len(images.y) <= count:
        return images
    with seeded(*stream):
        rows = torch.randperm(len(images.y))[:count]
    return LabeledImages(images.x[rows], images.y[rows])


TESTED = 4000  # test images, at most; the same for all trainings


def permutations(options: Any, start: Callable[[Job], Future[dict[str, Any]]]) -> None:
    """Tables and figure of the first question."""
    waiting = {}
    for name in ("Mixer", "ConvNet"):
        for kind in (*PERMUTED, *([MOVED] if name == "Mixer" else [])):
            jobs = [Job(options.set, name, rate(options, name), options.steps, seed, kind) for seed in options.seeds]
            waiting[name, kind] = [start(job) for job in jobs]
    found = {line: [future.result() for future in futures] for line, futures in waiting.items()}
    about = f"{options.set}, {options.steps} steps, accuracy in percent, mean ± deviation over seeds {options.seeds}"
    both = cells.table(f"the same permutation in training and test: {about}", ("", *PERMUTED, MOVED))
    only = cells.table(f"learned from plain images: {about}", ("tested on", "within patches", "patches", "pixels"))
    for name in ("Mixer", "ConvNet"):
        lines = [found.get((name, kind)) for kind in (*PERMUTED, MOVED)]
        both.add_row(name, *(cells.spread([run["accuracy"] for run in runs]) if runs else "" for runs in lines))
        tests = [run["permuted at test"] for run in found[name, "plain"]]
        only.add_row(name, *(cells.spread([test[kind] for test in tests]) for kind in tests[0]))
    apart = [
        max(abs(a - b) for a, b in zip(plain["curve"], moved["curve"], strict=True))
        for plain, moved in zip(found["Mixer", "plain"], found["Mixer", MOVED], strict=True)
    ]
    console = Console(width=150)
    console.print(both, only)
    console.print("largest difference between the loss curves of Mixer, plain and with weights moved, by seed:", apart)
    if options.figure:
        curves = {line: [run["curve"] for run in runs] for line, runs in found.items()}
        mixer_pictures.permutations(curves, PART, options.set, options.figure)


def sizes(options: Any, start: Callable[[Job], Future[dict[str, Any]]]) -> None:
    """Table and figure of the second question."""
    before = BEFORE.get(options.set, "omniglot")
    counts = options.sizes or SIZES.get(options.set, (100, 1000, 6000))
    waiting = {}
    for first in ("", before):
        for name in NETWORKS:
            for count in counts:
                waiting[name, first, count] = [
                    start(
                        Job(
                            options.set,
                            name,
                            rate(options, name) / (FINER if first else 1),
                            options.steps,
                            seed,
                            images=count,
                            before=first,
                            before_steps=options.before_steps if first else 0,
                        )
                    )
                    for seed in options.seeds
                ]
    found = {line: [future.result()["accuracy"] for future in futures] for line, futures in waiting.items()}
    table = cells.table(
        f"accuracy in percent on {options.set} by training images, {options.steps} steps, seeds {options.seeds}",
        ("", *(f"{count:,}" for count in counts)),
    )
    for first in ("", before):
        for name in NETWORKS:
            title = f"{name}, {f'after {options.before_steps} steps on {first}' if first else 'from scratch'}"
            table.add_row(title, *(cells.spread(found[name, first, count]) for count in counts))
        table.add_section()
    for name in NETWORKS:
        table.add_row(
            f"{name}, paired gain",
            *(cells.gain(np.subtract(found[name, before, count], found[name, "", count])) for count in counts),
        )
    Console(width=150).print(table)
    if options.figure:
        mixer_pictures.sizes(found, before, options.set, options.figure)


def rate(options: Any, network: str) -> float:
    """The step size of a network."""
    return float(options.rates[list(NETWORKS).index(network)])


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = cells.parser(__doc__, "runs/mixer")
    parser.set_defaults(seeds=[0, 1, 2])
    parser.add_argument("--set", default="cifar10", help="cifar10 (FEDLAB_DATA), mnist or another set with labels")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--before-steps", type=int, default=1500)
    parser.add_argument("--sizes", type=int, nargs="*", help="numbers of training images")
    parser.add_argument("--rates", type=float, nargs=3, default=[1e-2, 3e-3, 2e-3], help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--figure", type=Path, help="a picture to draw")
    options = parser.parse_args()
    questions = {"permutations": permutations, "sizes": sizes}
    if len(options.overrides) != 1 or options.overrides[0] not in questions:
        parser.error(f"name one question: {' or '.join(questions)}; got {' '.join(options.overrides) or 'none'}")
    with cells.workers(options.processes) as pool:
        questions[options.overrides[0]](
            options, lambda job: pool.submit(run, job, options.runs, cells.threads(options.processes))
        )


if __name__ == "__main__":
    main()
