"""Several comparisons, each of which is one data set, for tests of strategies over data sets.

**Source**: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006. The score of a strategy
on a data set is the mean of its comparison, over clients and seeds. A single comparison takes each client for a data
set (:mod:`fedlab.comparison.data_sets`), which clients that are parts of one set are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlab.comparison import coverage, statistics
from fedlab.comparison.data_sets import CriticalDifference, critical_difference, signed_rank
from fedlab.comparison.page_tables import records
from fedlab.comparison.result import Comparison
from fedlab.errors import RunError
from fedlab.runs.metrics import MetricTable

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("variant", "strategy", "mean", "rank", "difference"),
    *("data_sets", "wins", "p_wilcoxon", "p_wilcoxon_holm", "wilcoxon_method"),
)


@dataclass(frozen=True)
class ComparisonSet:
    """Comparisons by one metric, with at least two variants in common.

    Attributes
    ----------
    comparisons
        Each of them a data set.
    names
        Their names: of the folders, and of as many folders above as it takes to tell them apart.
    """

    comparisons: list[Comparison]
    names: list[str]

    @classmethod
    def read(cls, folders: Sequence[Path | str]) -> ComparisonSet:
        """Read the folders of two or more comparisons.

        Raises
        ------
        RunError
            When one is no comparison or named twice; when their metrics differ, a label means two strategies, or fewer
            than two variants are in all of them.
        """
        comparisons = [Comparison.read(folder) for folder in folders]
        places = [comparison.directory for comparison in comparisons]
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice:
            raise RunError(f"{twice} is named twice; each comparison is one data set")
        if len(comparisons) < 2:
            raise RunError("one comparison is one data set; name two or more, each on other data")
        found = cls(comparisons, _names(places))
        found._check_metric()
        found._check_variants()
        return found

    def _check_metric(self) -> None:
        titles = {
            name: comparison.metric_table.title(comparison.metric)
            for name, comparison in zip(self.names, self.comparisons, strict=True)
        }
        if len({comparison.metric for comparison in self.comparisons}) > 1:
            by = ", ".join(f"{name} by {title}" for name, title in titles.items())
            raise RunError(f"these are compared by different metrics: {by}; choose one for all of them (--metric)")
        if not self.direction:
            raise RunError(f"whether more or less {self.metric} is better is not known, so there are no ranks")

    def _check_variants(self) -> None:
        if len(self.variants) < 2:
            each = "; ".join(f"{name} has {', '.join(of) or 'none yet'}" for name, of in self._finished.items())
            raise RunError(f"fewer than two variants have results in all of these comparisons: {each}")
        for variant in self.variants:
            behind = {name: of[variant]["strategy"] for name, of in self._finished.items()}
            if len(set(behind.values())) > 1:
                which = ", ".join(f"{strategy} in {name}" for name, strategy in behind.items())
                raise RunError(f"{variant} is {which}; give different strategies different labels (LABEL=NAME)")

    @cached_property
    def _finished(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Rows of each data set's summary that have a result, by name of the variant."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, comparison in zip(self.names, self.comparisons, strict=True):
            rows = found.setdefault(name, {})
            for row in records(comparison.summary()):
                if math.isfinite(row["mean"]):
                    pairs = zip(comparison.grid, comparison.option_columns, strict=True)
                    options = [f"{option}={row[column]}" for option, column in pairs if row[column]]
                    rows[", ".join([str(row["label"]), *options])] = row
        return found

    @property
    def metric(self) -> str:
        """Group of the compared metrics."""
        return self.comparisons[0].metric

    @cached_property
    def metric_table(self) -> MetricTable:
        """The metrics that the runs of all comparisons declare, merged."""
        return MetricTable.merged(comparison.metric_table for comparison in self.comparisons)

    @property
    def direction(self) -> int:
        """1 where more of the metric is better, -1 where less is, 0 where that is not known."""
        return self.metric_table.direction(self.metric)

    @cached_property
    def variants(self) -> list[str]:
        """Variants, with their values of a grid's options, that have a result on every data set; the baseline first."""
        first, *others = self._finished.values()
        return [variant for variant in first if all(variant in other for other in others)]

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Variants without a result on some data set, and the data sets that they have one on."""
        everything = dict.fromkeys(variant for rows in self._finished.values() for variant in rows)
        return {
            variant: [name for name, rows in self._finished.items() if variant in rows]
            for variant in everything
            if variant not in self.variants
        }

    @property
    def incomplete(self) -> list[str]:
        """A sentence for each row of a comparison that is a mean over fewer clients or seeds than others are."""
        pairs = zip(self.names, self.comparisons, strict=True)
        return [f"On {name}: {note}" for name, comparison in pairs for note in coverage.notes(comparison)]

    @property
    def baseline(self) -> str:
        """Variant that others are compared with: the baseline of the first comparison, where all have it."""
        asked = self.comparisons[0].baseline
        return asked if asked in self.variants else self.variants[0]

    @cached_property
    def uses_labels(self) -> list[str]:
        """Variants whose clients learn from labels, where those of others have none."""
        labels = {label for comparison in self.comparisons for label in comparison.uses_labels}
        own = {name: rows[name]["label"] for rows in self._finished.values() for name in rows}
        return [variant for variant in self.variants if own[variant] in labels]

    @property
    def ranked(self) -> list[str]:
        """Variants that have a rank: those that do not learn from clients' labels."""
        return [variant for variant in self.variants if variant not in self.uses_labels]

    def means(self, variants: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return the scores (variants, data sets), each over the clients and seeds that all these variants have there.

        Where options of a grid tell the variants apart, which may be those of the clients, each has its own mean.
        """
        return np.array([self._means_on(name, variants) for name in self.names]).T

    def _means_on(self, name: str, variants: Sequence[str]) -> list[float]:
        comparison, rows = self.comparisons[self.names.index(name)], self._finished[name]
        keys = [tuple(str(rows[variant][key]) for key in comparison.keys) for variant in variants]
        means = comparison.common_means(keys) if len({key[1:] for key in keys}) == 1 else []
        return means if np.isfinite(means).any() else [float(rows[variant]["mean"]) for variant in variants]

    def interval(self, variant: str, name: str) -> statistics.Interval:
        """Return a variant's mean on one data set, with its interval over seeds."""
        row = self._finished[name][variant]
        return statistics.Interval(int(row["n"]), row["mean"], row["low"], row["high"])

    def ranking(self) -> CriticalDifference | None:
        """Return ranks of :attr:`ranked` and Nemenyi's critical difference; None with fewer than three, or on two."""
        return critical_difference(self.direction * self.means(self.ranked)) if self.ranked else None

    def summary(self) -> pd.DataFrame:
        """Return one row a variant.

        ``variant``, ``strategy``, ``mean`` (over data sets), ``rank`` (mean over data sets), ``difference`` (mean over
        data sets), ``data_sets``, ``wins``, ``p_wilcoxon``, ``p_wilcoxon_holm``, ``wilcoxon_method`` (to the baseline),
        then for each data set a column of its name (``data_set_`` before it where it is one of these), and of its name
        with ``_low`` and ``_high``.
        """
        return self._summary.copy()

    @cached_property
    def _summary(self) -> pd.DataFrame:
        import pandas as pd

        scores = self.direction * self.means(self.ranked) if self.ranked else np.empty((0, 0))
        ranks = dict(zip(self.ranked, map(float, statistics.ranks(scores)), strict=True))
        rows = [self._row(variant, ranks.get(variant, math.nan)) for variant in self.variants]
        for row, p in zip(rows, statistics.holm([row["p_wilcoxon"] for row in rows]), strict=True):
            row["p_wilcoxon_holm"] = p
        return pd.DataFrame(rows, columns=[*COLUMNS, *list(rows[0])[len(COLUMNS) :]])

    def _row(self, variant: str, rank: float) -> dict[str, Any]:
        own, base = self.means([variant, self.baseline])
        test = signed_rank(own, base, self.direction) if variant != self.baseline else None
        row: dict[str, Any] = {
            "variant": variant,
            "strategy": self._finished[self.names[0]][variant]["strategy"],
            "mean": float(own.mean()),
            "rank": rank,
            "difference": float((own - base).mean()) if test else math.nan,
            "data_sets": float(test.n) if test else math.nan,
            "wins": float(test.wins) if test else math.nan,
            "p_wilcoxon": test.p if test else math.nan,
            "p_wilcoxon_holm": math.nan,
            "wilcoxon_method": test.method if test else "",
        }
        for name in self.names:
            found = self.interval(variant, name)
            stem = f"data_set_{name}" if name in COLUMNS else name
            row |= {stem: found.mean, f"{stem}_low": found.low, f"{stem}_high": found.high}
        return row


def _names(places: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths, of one length, that tell them apart."""
    lengths = range(1, max(len(place.parts) for place in places) + 1)
    return next(
        names
        for names in (["/".join(place.parts[-length:]) for place in places] for length in lengths)
        if len(set(names)) == len(names)
    )
