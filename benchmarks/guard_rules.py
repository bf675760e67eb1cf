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
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import cells
from fedlab.losses.class_balance import sinkhorn
from fedlab.losses.information_maximization import entropy
from fedlab.losses.propagation import propagate_labels
from fedlab.registry import load_config
from fedlab.strategies.client_adaptation.guard import mutual_information
from fedlab.strategies.client_adaptation.source_free import Options

TOLERANCE = 0.5  # points that a kept adaptation may lose
LOSS_WEIGHT = 5  # of a point that is lost, in points that are gained, where a threshold is chosen
OPTIONS: Options = load_config({"strategy": "source_free"}).adaptation
MIN_AGREEMENT, PER_CLASS = OPTIONS.min_agreement, OPTIONS.min_examples_per_class
AGAIN = "again"  # a second training, of half the steps and with other random numbers
BOTH = "both models predict"
SHARES = (0.5, 0.75, 0.9)  # of the new weights in those between
SHARPNESS = 0.05  # temperature of soft neighborhood density, as published


def mixed(share: float) -> str:
    """Title of the model with this share of the new weights."""
    return f"{share} new"


@dataclass(frozen=True)
class Case:
    """One adaptation: where it was, accuracies on test data in percent, and what the client could know.

    ``instead`` has those of what a client could predict with instead of the new G, by title: weights between the old
    and the new one, or the mean of the probabilities of both, with the client's statistics in the old one.
    """

    group: str
    source: str
    target: str
    seed: int
    before: float
    after: float
    instead: Mapping[str, float]
    examples: int
    classes: int
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
    examples, classes = found["new", "train"]["p"].shape
    between = {mixed(share): accuracy(found, mixed(share)) for share in SHARES}
    case = Case(
        group=found["group"],
        source=found["source"],
        target=found["target"],
        seed=found["seed"],
        before=accuracy(found, "sent"),
        after=accuracy(found, "new"),
        instead={BOTH: accuracy(found, "old", "new"), **between},
        examples=examples,
        classes=classes,
        statistics=statistics(found),
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
    again = [found[AGAIN, "train"]["p"].argmax(1)] if (AGAIN, "train") in found else []
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
        AGREEMENT: (same(labels, classes) + same(classes, first)) / 2,
        "old labels that propagation leaves alone": same(labels, first),
        **({SECOND: same(classes, *again)} if again else {}),
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


SECOND = "classes of a second training"
AGREEMENT = f"mean of {STAYED} and {LEARNED}"


def passes(case: Case, errors: float = 0.0) -> bool:
    """Return the guard's verdict, on the agreement less so many of its standard errors."""
    agreement = case.statistics[AGREEMENT]
    error = (agreement * (1 - agreement) / case.examples) ** 0.5
    return agreement - errors * error >= MIN_AGREEMENT and case.statistics[INFORMATION] >= 0


GUARD = f"the guard: mean of {STAYED} and {LEARNED}, information did not fall"
ENOUGH = f"the guard, from {PER_CLASS} examples a class on"
FIXED: Mapping[str, Callable[[Case], bool]] = {
    "always": lambda case: True,
    "never": lambda case: False,
    "60 % of the labels stayed, information did not fall": lambda case: (
        case.statistics[STAYED] >= 0.6 and case.statistics[INFORMATION] >= 0
    ),
    GUARD: passes,
    "the guard, on the agreement less two standard errors": lambda case: passes(case, errors=2),
    ENOUGH: lambda case: case.examples >= PER_CLASS * case.classes and passes(case),
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


def means(cases: Sequence[Case]) -> Table:
    """Return a table of mean accuracies by group, with what could be kept instead of the new G."""
    others = tuple(cases[0].instead)
    table = cells.table("mean accuracy in percent", ("group", "cases", "before", "after", *others))
    for group in sorted({case.group for case in cases}):
        mine = [case for case in cases if case.group == group]
        each = [[case.before, case.after, *(case.instead[other] for other in others)] for case in mine]
        table.add_row(group, str(len(mine)), *(f"{mean:.1f}" for mean in np.mean(each, axis=0)))
    return table


def show(cases: Sequence[Case]) -> None:
    """Print every case, and how each rule does."""
    console = Console(width=200)
    names = [name for name in cases[0].statistics if all(name in case.statistics for case in cases)]
    others = tuple(cases[0].instead)
    columns = ("group", "source", "target", "seed", "examples", "agreement", "again", "before", "after", "gain")
    table = cells.table("accuracy in percent", (*columns, *others))
    for case in sorted(cases, key=lambda case: case.gain):
        agreements = [case.statistics.get(name) for name in (AGREEMENT, SECOND)]
        known = (str(case.seed), str(case.examples), *("" if one is None else f"{one:.3f}" for one in agreements))
        figures = (f"{case.before:.1f}", f"{case.after:.1f}", f"{case.gain:+.1f}")
        instead = (f"{case.instead[other]:.1f}" for other in others)
        table.add_row(case.group, case.source, case.target, *known, *figures, *instead)
    console.print(table)
    console.print(means(cases))
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
    for other in cases[0].instead:
        changed = [replace(case, after=case.instead[other]) for case in cases]
        for title in ("always", GUARD, ENOUGH):
            table.add_row(f"{title}; {other}", *judged(changed, FIXED[title]).row)
    for title, found in verdicts.items():
        table.add_row(f"the guard on {title}", *found.row)
    table.add_section()
    for name in names:
        table.add_row(f"{name} (>= {threshold(name, cases):.3g})", *left_out(name, cases).row)
    console.print(table)
