"""Does self-training help a few-shot learner? Seeds, baselines and ablations of STARTUP, on the same episodes.

    python -m benchmarks.startup                                  # embedded data: seeds 0 to 2, every baseline
    python -m benchmarks.startup --methods all                    # and every ablation
    python -m benchmarks.startup --settings                       # federated, centralized, a domain split over five
    python -m benchmarks.startup --preset startup-tiny-cpu --seeds 0 --methods STARTUP "transfer + SimCLR"
    python -m benchmarks.startup --preset startup-tiny-cpu --backbone    # a layer above a frozen ImageNet network

All methods of a seed share one teacher (ProtoNet and fresh starts aside). Every run stays in ``--runs`` with the
accuracy of each of its episodes; one that is there is read, not repeated, and one that was killed is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import cells, startup_backbone
from fedlab import launch
from fedlab.config.presets import parse_overrides
from fedlab.config.schema import Config
from fedlab.config.sections import Value
from fedlab.errors import suggest
from fedlab.models.batchnorm_stats import encode
from fedlab.models.feature_classifier import features_of
from fedlab.registry import load_config
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import deterministic
from fedlab.workloads.fewshot import FewShot

Accuracies = dict[str, dict[int, NDArray[np.float64]]]  # client -> shots -> accuracy of each episode

NOTHING: Mapping[str, Value] = {"rounds": 1, "server.steps": 0, "client.steps": 0, "startup.contrastive_weight": 0.0}
# What stands here is what a run differs in from the preset.
BASELINES: Mapping[str, Mapping[str, Value]] = {
    "transfer": {**NOTHING, "startup.distillation_loss": "none"},
    "ProtoNet": {
        **NOTHING,
        "startup.distillation_loss": "none",
        "fewshot.objective": "prototypes",
        "fewshot.classifier": "prototypes",
    },
    "base alone, as many steps": {
        "startup.distillation_loss": "none",
        "startup.contrastive_weight": 0.0,
        "client.steps": 0,
    },
    "SimCLR on target": {"startup.distillation_loss": "none", "startup.base_weight": 0.0, "startup.start": "fresh"},
    "SimCLR on target, from the teacher": {"startup.distillation_loss": "none", "startup.base_weight": 0.0},
    "transfer + SimCLR": {"startup.distillation_loss": "none"},
    "STARTUP": {},
    "STARTUP, hard labels": {"startup.distillation_loss": "hard"},
    "STARTUP, no SimCLR": {"startup.contrastive_weight": 0.0},
    "Dynamic Distillation": {
        "startup.contrastive_weight": 0.0,
        "startup.teacher_ema": 0.99,
        "startup.inverse_temperature": 10.0,
        "startup.start": "whole",
        "startup.distillation_warmup": True,
        "client.learning_rate": 0.03,  # at the preset's 0.1 it collapses, see docs/explanation/startup.md
    },
}
ABLATIONS: Mapping[str, Mapping[str, Value]] = {
    "nothing trained": {**NOTHING, "startup.distillation_loss": "none", "server.pretrain_steps": 0},
    "soft labels shuffled": {"startup.shuffle": True},
    "reverse KL": {"startup.distillation_loss": "reverse_kl"},
    "reverse KL without entropy": {"startup.distillation_loss": "reverse_cross_entropy"},
    "entropy alone": {"startup.distillation_loss": "entropy"},
    "Dynamic Distillation, step size 0.1": {**BASELINES["Dynamic Distillation"], "client.learning_rate": 0.1},
    "and a teacher that stays": {
        **BASELINES["Dynamic Distillation"],
        "client.learning_rate": 0.1,
        "startup.teacher_ema": 0.0,
    },
    "and a slower teacher": {
        **BASELINES["Dynamic Distillation"],
        "client.learning_rate": 0.1,
        "startup.teacher_ema": 0.999,
    },
    "and labels not sharpened": {
        **BASELINES["Dynamic Distillation"],
        "client.learning_rate": 0.1,
        "startup.inverse_temperature": 1.0,
    },
}
METHODS = {**BASELINES, **ABLATIONS}
OF_STUDENT = ("client.", "startup.", "rounds", "server.steps", "server.learning_rate")  # no teacher depends on them
SPLIT = 5


def one_run(preset: str, overrides: Mapping[str, Value], runs: Path, episodes: int) -> Accuracies:
    """Accuracies of a run's last model, read from disk where they are there."""
    path = cells.directory_of(preset, overrides, runs)
    kept = path / "episodes.npz"
    if not kept.exists():
        recorded = cells.one_run(preset, overrides, runs, aside={"fewshot.episodes": 20}).config
        state = RunDirectory.open(path).checkpoints.latest()
        assert state is not None
        found = accuracies(load_config(recorded, {"fewshot.episodes": episodes}), state[1]["arrays"])
        arrays = {f"{client}|{shots}": values for client, each in found.items() for shots, values in each.items()}
        np.savez(path / "unfinished.npz", **arrays)
        (path / "unfinished.npz").rename(kept)
    found = {}
    with np.load(kept) as archive:
        for name in archive.files:
            client, _, shots = name.partition("|")
            found.setdefault(client, {})[int(shots)] = archive[name]
    return found


def made(config: Config) -> FewShot:
    """The workload of a run."""
    workload = config.workload
    assert isinstance(workload, FewShot)
    return workload


def accuracies(config: Config, arrays: Mapping[str, torch.Tensor]) -> Accuracies:
    """Accuracy of every episode of every target, once for each target however many clients share it."""
    workload = made(config)
    model = workload.model()
    model.load_state_dict(dict(arrays))
    with deterministic(config.run.threads):
        return {
            name: {
                shots: values.numpy()
                for shots, values in workload.episode_accuracies(
                    model, workload.data(number * workload.data_config.clients_per_domain, "test")
                ).items()
            }
            for number, name in enumerate(workload.domains)
        }


def distances(run: Path) -> dict[str, float]:
    """Frechet distance of the teacher's features between base validation images and each target's unlabeled ones."""
    directory = RunDirectory.open(run)
    workload = made(load_config(str(directory.config_file)))
    model = workload.model()
    model.load_state_dict(directory.checkpoints.load(0)["strategy"]["teacher"])
    cpu = torch.device("cpu")

    def moments(partition: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        data = workload.data(partition, "test" if partition is None else "train")
        z = encode(features_of(model), data, cpu).double().numpy()
        return z.mean(0), np.cov(z.T)

    mean, covariance = moments(None)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    found = {}
    for number, name in enumerate(workload.domains):
        other, spread = moments(number * workload.data_config.clients_per_domain)
        cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ spread @ root), 0, None)).sum()  # of the product's root
        found[name] = float(((mean - other) ** 2).sum() + np.trace(covariance + spread) - 2 * cross)
    return found


def interval(values: NDArray[np.float64]) -> float:
    """1.96 standard errors of a mean over episodes, in points."""
    return float(196 * values.std() / len(values) ** 0.5)


def show(title: str, found: Mapping[str, Sequence[Accuracies]], shots: int, against: str = "") -> None:
    """A line a method: mean over seeds ± deviation over seeds (± 1.96 standard errors over episodes), in percent.

    With ``against``, the paired difference to that method in points.
    """
    clients = list(next(iter(found.values()))[0])
    table = cells.table(title, ("", *clients, "mean"))
    for name, runs in found.items():
        if name == against:
            continue
        row, means = [], []
        for client in clients:
            each = [run[client][shots] for run in runs]
            if against:
                each = [a - other[client][shots] for a, other in zip(each, found[against], strict=True)]
            seeds = 100 * np.array([values.mean() for values in each])
            means.append(seeds)
            row.append(cell(seeds, interval(np.concatenate(each)), bool(against)))
        table.add_row(name, *row, cell(np.mean(means, 0), None, bool(against)))
    Console(width=150).print(table)


def cell(seeds: NDArray[np.float64], error: float | None, signed: bool) -> str:
    """Mean ± deviation over seeds, and the interval over episodes where there is one."""
    spread = f" ± {seeds.std(ddof=1):.1f}" if len(seeds) > 1 else ""
    return f"{seeds.mean():{'+' if signed else ''}.1f}{spread}" + (f" (± {error:.1f})" if error is not None else "")


def settings_of(targets: Sequence[str]) -> dict[str, Mapping[str, Value]]:
    """Federated against centralized, and the last target on its own: on one client, and split over five."""
    one = {"fewshot.targets": targets[-1]}
    return {
        "federated, a client a domain": {},
        "centralized, all domains together": {"startup.setting": "centralized"},
        "one domain, centralized": {**one, "startup.setting": "centralized"},
        "one domain, one client": one,
        f"one domain, split over {SPLIT}": {**one, "data.clients_per_domain": SPLIT},
    }


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = cells.parser(__doc__)
    parser.set_defaults(seeds=[0, 1, 2])
    parser.add_argument("--preset", default="startup-omniglot")
    parser.add_argument("--methods", nargs="+", default=list(BASELINES), help="names, or all: " + ", ".join(METHODS))
    parser.add_argument("--settings", action="store_true", help="STARTUP federated and centralized instead")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--backbone", action="store_true", help="on features of a frozen ImageNet network")
    options = parser.parse_args()
    chosen = list(METHODS) if options.methods == ["all"] else options.methods
    for name in chosen:
        if name not in METHODS:
            parser.error(f"no method {name!r}; {suggest(name, METHODS)}")
    given = parse_overrides(options.overrides)
    shared = {
        "threads": cells.threads(options.processes),
        **(startup_backbone.OPTIONS if options.backbone else {}),
        **given,
    }
    of_teacher = {key: value for key, value in shared.items() if not key.startswith(OF_STUDENT)}
    transfer = {**of_teacher, **METHODS["transfer"], "checkpoint.keep": 1000}
    targets = made(launch.prepare(options.preset, shared)).domains
    runs = {name: METHODS[name] for name in chosen if name != "transfer"}
    if options.settings:
        runs = settings_of(targets)

    with cells.workers(options.processes) as pool:

        def start(overrides: Mapping[str, Value], seed: int) -> Future[Accuracies]:
            return pool.submit(one_run, options.preset, {**overrides, "seed": seed}, options.runs, options.episodes)

        waiting = {("transfer", seed): start(transfer, seed) for seed in options.seeds}
        waiting |= {
            (name, seed): start({**shared, **overrides}, seed)
            for name, overrides in runs.items()
            for seed in options.seeds
        }
        found = {name: [waiting[name, seed].result() for seed in options.seeds] for name in ("transfer", *runs)}

    whole = {name: each for name, each in found.items() if set(each[0]) == set(targets)}
    alone = {name: [{targets[-1]: run[targets[-1]]} for run in each] for name, each in found.items()}
    for shots in found["transfer"][0][targets[0]]:
        about = f"{shots}-shot, {options.episodes} episodes, seeds {options.seeds}"
        show(f"accuracy in percent, {about}", whole, shots)
        show(f"paired difference to transfer in points, {about}", whole, shots, "transfer")
        if options.settings:
            show(f"difference to transfer on {targets[-1]}, {about}", alone, shots, "transfer")
    apart = [
        distances(cells.directory_of(options.preset, {**transfer, "seed": seed}, options.runs))
        for seed in options.seeds
    ]
    table = Table(title="Frechet distance of the teacher's features, base to target, mean ± deviation over seeds")
    for name in targets:
        table.add_column(name, justify="right")
    table.add_row(*(cell(np.array([seed[name] for seed in apart]), None, False) for name in targets))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
