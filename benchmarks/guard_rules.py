"""Label-free statistics of an adaptation, and rules that keep it where one of them is large enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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


@dataclass(frozen=True)
class Case:
    """One adaptation: where it was, accuracies on test data in percent, and what the client could know.

    ``blended`` is that of the mean of the probabilities of both models, with the client's statistics in the old one.
    """

    group: str
    source: str
    target: str
    seed: int
    before: float
    after: float
    blended: float
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
    before, after, blended = (accuracy(found, *titles) for titles in (("sent",), ("new",), ("old", "new")))
    case = Case(
        found["group"], found["source"], found["target"], found["seed"], before, after, blended, statistics(found)
    )
    known.write_text(json.dumps(asdict(case)))
    return case


def accuracy(found: Any, *titles: str, part: str = "test") -> float:
    """Accuracy in percent of a model, or of the mean of several models' probabilities."""
    p = torch.stack([found[title, part]["p"] for title in titles]).mean(0)
    return 100 * float((p.argmax(1) == found["labels"][part]).double().mean())


STAYED, LEARNED, INFORMATION = "labels that stayed", "first labels learned", "information between views: gain"


def statistics(found: Any) -> dict[str, float]:
    """Return what speaks for the new model, on the client's training data if not said otherwise."""
    sent, old, new = (found[title, "train"] for title in ("sent", "old", "new"))
    labels, classes = old["p"].argmax(1), new["p"].argmax(1)
    first = propagated(old["z"], old["p"])
    gain = {
        "nuclear norm": nuclear_norm(new["p"]) - nuclear_norm(old["p"]),
        "soft neighborhood density": density(new["p"]) - density(old["p"]),
        "neighbors of one class": neighbors(new["z"], classes) - neighbors(old["z"], labels),
        "information between views": information(new["views"]) - information(old["views"]),
        "information between views of unseen inputs": information(found["new", "test"]["views"])
        - information(found["old", "test"]["views"]),
        "like labels propagated over the features that were sent": same(classes, propagated(sent["z"], sent["p"]))
        - same(labels, propagated(sent["z"], sent["p"])),
        "like first labels": same(classes, first) - same(labels, first),
    }
    return {
        STAYED: same(labels, classes),
        "labels that stayed, mean over classes": by_class(labels, classes),
        LEARNED: same(classes, first),
        f"mean of {STAYED} and {LEARNED}": (same(labels, classes) + same(classes, first)) / 2,
        "old labels that propagation leaves alone": same(labels, first),
        "probability of new classes by the old model": float(old["p"].gather(1, classes[:, None]).mean()),
        "class balance kept": -divergence(new["p"].mean(0), old["p"].mean(0)),
        "class balance: old": float(entropy(old["p"].mean(0))) / float(np.log(old["p"].shape[1])),
        "confidence: old": float(old["p"].max(1).values.mean()),
        "views of one class: old": float((old["views"].argmax(2) == labels).double().mean()),
        "neighbors of one class: old": neighbors(old["z"], labels),
        "information between views: old": information(old["views"]),
        "information between an old and a new view": information(torch.stack([old["views"][0], new["views"][1]])),
        **{f"{name}: gain": value for name, value in gain.items()},
    }


def by_class(labels: Tensor, classes: Tensor) -> float:
    """Mean over the classes of ``labels`` of the fraction of examples with the same class."""
    return float(np.mean([same(labels[labels == one], classes[labels == one]) for one in set(labels.tolist())]))


def divergence(p: Tensor, q: Tensor) -> float:
    """Kullback-Leibler divergence of two distributions (classes,) in nats."""
    return float((p * (p / q).log()).sum())


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
    return float(torch.linalg.svdvals(p).sum() / (min(p.shape) * len(p)) ** 0.5)


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


GUARD = f"the guard: mean of {STAYED} and {LEARNED}, information did not fall"
FIXED: Mapping[str, Callable[[Case], bool]] = {
    "always": lambda case: True,
    "never": lambda case: False,
    "60 % of the labels stayed, information did not fall": lambda case: (
        case.statistics[STAYED] >= 0.6 and case.statistics[INFORMATION] >= 0
    ),
    GUARD: lambda case: (
        case.statistics[f"mean of {STAYED} and {LEARNED}"] >= MIN_AGREEMENT and case.statistics[INFORMATION] >= 0
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
        """Cells of a table: how often it is right, what it lets through, what it misses, mean gain."""
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
    blended = [replace(case, after=case.blended) for case in cases]
    for title in ("always", GUARD):
        table.add_row(f"{title}; both models predict", *judged(blended, FIXED[title]).row)
    for title, found in verdicts.items():
        table.add_row(f"the guard on {title}", *found.row)
    table.add_section()
    for name in names:
        table.add_row(f"{name} (>= {threshold(name, cases):.3g})", *left_out(name, cases).row)
    console.print(table)
