"""Label-free statistics of an adaptation, and rules that keep it where one of them is large enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import cells
from fedlab.losses.class_balance import sinkhorn
from fedlab.losses.information_maximization import entropy
from fedlab.losses.propagation import propagate_labels
from fedlab.registry import load_config
from fedlab.strategies.client_adaptation.guard import mutual_information

TOLERANCE = 0.5  # points that a kept adaptation may lose
LOSS_WEIGHT = 5  # of a point that is lost, in points that are gained, where a threshold is chosen
MIN_AGREEMENT = float(load_config({"strategy": "source_free"}).adaptation.min_agreement)
SHARPNESS = 0.05  # temperature of soft neighborhood density, as published
PROXY = "proxy_"


@dataclass(frozen=True)
class Case:
    """One adaptation: where it was, what it gained on test data in points, and what the client could know."""

    group: str
    source: str
    target: str
    seed: int
    before: float
    after: float
    statistics: Mapping[str, float]

    @property
    def gain(self) -> float:
        """Accuracy after adaptation less that of the model that was sent, in points."""
        return self.after - self.before


def case_of(file: Path) -> Case:
    """Read one case; its statistics are computed once."""
    known = file.with_suffix(".json")
    if known.exists():
        return Case(**json.loads(known.read_text()))
    found = torch.load(file, weights_only=True)
    before, after = (accuracy(found, title) for title in ("sent", "new"))
    group = "proxies" if found["target"].startswith(PROXY) else found["group"]
    case = Case(group, found["source"], found["target"], found["seed"], before, after, statistics(found))
    known.write_text(json.dumps(asdict(case)))
    return case


def accuracy(found: Any, title: str, part: str = "test") -> float:
    """Accuracy of a model in percent."""
    right = found[title, part]["p"].argmax(1) == found["labels"][part]
    return 100 * float(right.double().mean())


def statistics(found: Any) -> dict[str, float]:
    """What speaks for the new model, on the client's training data if not said otherwise."""
    old, new = found["old", "train"], found["new", "train"]
    unseen, adapted = found["old", "test"], found["new", "test"]
    labels, classes = old["p"].argmax(1), new["p"].argmax(1)
    spread = propagated(old["z"], old["p"])
    mean_old, mean_new = old["p"].mean(0), new["p"].mean(0)
    return {
        "labels that stayed": same(labels, classes),
        "information between views: gain": information(new["views"]) - information(old["views"]),
        "the same, on unseen inputs": information(adapted["views"]) - information(unseen["views"]),
        "information between views: old": information(old["views"]),
        "old labels that survive propagation": same(labels, spread),
        "new labels like propagated old ones": same(classes, spread),
        "mean of labels that stayed and this": (same(labels, classes) + same(classes, spread)) / 2,
        "new like propagated, less old like propagated": same(classes, spread) - same(labels, spread),
        "nuclear norm: gain": nuclear_norm(new["p"]) - nuclear_norm(old["p"]),
        "soft neighborhood density: gain": density(new["p"]) - density(old["p"]),
        "neighbors of one class: old": neighbors(old["z"], labels),
        "neighbors of one class: gain": neighbors(new["z"], classes) - neighbors(old["z"], labels),
        "class balance kept": -float((mean_new * (mean_new / mean_old).log()).sum()),
        "class balance: old": float(entropy(mean_old)) / float(np.log(len(mean_old))),
        "confidence: old": float(old["p"].max(1).values.mean()),
        "views of one class: old": float((old["views"].argmax(2) == labels).double().mean()),
    }


def same(first: Tensor, second: Tensor) -> float:
    """Fraction of examples with the same class."""
    return float((first == second).double().mean())


def information(views: Tensor) -> float:
    """Mutual information in nats of predictions for two views (views, examples, classes) of an example."""
    joint = views[0].double().T @ views[1].double()
    return float(mutual_information(joint + joint.T))


def propagated(z: Tensor, p: Tensor) -> Tensor:
    """Pseudo-labels (examples,) as ``source_free`` makes them."""
    return sinkhorn(propagate_labels(z.float(), sinkhorn(p)), 5).argmax(1)


def nuclear_norm(p: Tensor) -> float:
    """Nuclear norm of predictions (examples, classes), 1 for certain and balanced ones (Deng et al., ICML 2023)."""
    return float(torch.linalg.svdvals(p).sum()) / float(min(p.shape) * len(p)) ** 0.5


def density(p: Tensor, most: int = 3000) -> float:
    """Soft neighborhood density of predictions (examples, classes) (Saito et al., ICCV 2021)."""
    unit = normalize(p[:most], dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf) / SHARPNESS
    return float(entropy(similarity.softmax(1)).mean())


def neighbors(z: Tensor, labels: Tensor, count: int = 10, most: int = 3000) -> float:
    """Fraction of each example's nearest neighbors that have its class."""
    unit, labels = normalize(z[:most].float(), dim=1), labels[:most]
    nearest = (unit @ unit.T).fill_diagonal_(-torch.inf).topk(min(count, len(unit) - 1)).indices
    return float((labels[nearest] == labels[:, None]).double().mean())


GUARD = "the guard: mean of labels that stayed and first labels learned, information did not fall"
FIXED: Mapping[str, Callable[[Case], bool]] = {
    "always": lambda case: True,
    "never": lambda case: False,
    "60 % of the labels stayed, information did not fall": lambda case: (
        case.statistics["labels that stayed"] >= 0.6 and case.statistics["information between views: gain"] >= 0
    ),
    GUARD: lambda case: (
        case.statistics["mean of labels that stayed and this"] >= MIN_AGREEMENT
        and case.statistics["information between views: gain"] >= 0
    ),
}


def threshold(name: str, cases: Sequence[Case]) -> float:
    """Value of a statistic from which on keeping these cases is worth most: that of the lowest kept one.

    It is the highest of the thresholds that judge these cases alike, since a loss is worse than a gain that is missed.
    """
    cuts = [*sorted({case.statistics[name] for case in cases}), np.inf]

    def worth(cut: float) -> float:
        gains = [case.gain for case in cases if case.statistics[name] >= cut]
        return sum(gain if gain > 0 else LOSS_WEIGHT * gain for gain in gains)

    return max(cuts, key=worth)


def judged(cases: Sequence[Case], keep: Callable[[Case], bool]) -> Verdicts:
    """Verdicts of a rule without a threshold of its own."""
    return Verdicts([case for case in cases if keep(case)], [case for case in cases if not keep(case)])


@dataclass(frozen=True)
class Verdicts:
    """A rule's verdicts on cases that it was not chosen on."""

    kept: Sequence[Case]
    stopped: Sequence[Case]

    @property
    def row(self) -> tuple[str, ...]:
        """How often it is right, what it lets through, what it misses, mean gain."""
        lost = [case.gain for case in self.kept if case.gain < -TOLERANCE]
        missed = [case.gain for case in self.stopped if case.gain > TOLERANCE]
        cases = len(self.kept) + len(self.stopped)
        right = cases - len(lost) - len(missed)
        worst = f"{min(lost):+.1f}" if lost else ""
        mean = sum(case.gain for case in self.kept) / cases
        return f"{right} of {cases}", str(len(lost)), worst, str(len(missed)), f"{sum(missed):.1f}", f"{mean:+.1f}"


def left_out(name: str, cases: Sequence[Case]) -> Verdicts:
    """Judge a statistic on each group by the threshold that the other groups give."""
    kept, stopped = list[Case](), list[Case]()
    for group in dict.fromkeys(case.group for case in cases):
        cut = threshold(name, [case for case in cases if case.group != group])
        for case in cases:
            if case.group == group:
                (kept if case.statistics[name] >= cut else stopped).append(case)
    return Verdicts(kept, stopped)


def show(cases: Sequence[Case]) -> None:
    """Print every case, and how each rule does."""
    console, names = Console(width=200), list(cases[0].statistics)
    table = cells.table("accuracy in percent", ("group", "source", "target", "seed", "before", "after", "gain"))
    for case in sorted(cases, key=lambda case: case.gain):
        figures = (f"{case.before:.1f}", f"{case.after:.1f}", f"{case.gain:+.1f}")
        table.add_row(case.group, case.source, case.target, str(case.seed), *figures)
    console.print(table)
    verdicts = {
        f"{group}, seed {seed}": judged(
            [case for case in cases if (case.group, case.seed) == (group, seed)], FIXED[GUARD]
        )
        for group, seed in sorted({(case.group, case.seed) for case in cases})
    }
    columns = ("keep where this is large", "right", "losses kept", "worst", "gains missed", "points", "mean gain")
    table = cells.table("verdicts on each group by the threshold of the others", columns)
    for title, keep in FIXED.items():
        table.add_row(title, *judged(cases, keep).row)
    for title, found in verdicts.items():
        table.add_row(f"the guard on {title}", *found.row)
    table.add_section()
    for name in names:
        table.add_row(f"{name} (>= {threshold(name, cases):.3g})", *left_out(name, cases).row)
    console.print(table)
