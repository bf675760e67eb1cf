"""Tables of variants over data sets as text, for Markdown and LaTeX."""

from __future__ import annotations

import math

from fedlab.comparison import columns, coverage
from fedlab.comparison.across.comparison_set import ComparisonSet
from fedlab.comparison.text_tables import Best, TextTable, plus_minus
from fedlab.runs.formatting import MISSING, p_value

MEAN = "mean"


def tables(found: ComparisonSet) -> list[TextTable]:
    """Return the scores by data set with their ranks, and the tests against the baseline."""
    return [scores(found), tests(found)]


def scores(found: ComparisonSet) -> TextTable:
    """Return a row a variant: its mean on each data set, the mean of these, and its mean rank."""
    metric, percent = found.metric_table.find(found.metric), found.metric_table.is_fraction(found.metric)
    rows = []
    for row in found.summary().to_dict("records"):
        variant, cells = str(row["variant"]), [str(row["variant"])]
        for name in found.names:
            own = found.interval(variant, name)
            text = plus_minus(own.mean, own.high - own.mean, percent)
            is_best = variant in found.ranked and found.metric_table.format(found.metric, own.mean) in best(found, name)
            cells.append(Best(text) if is_best else text)
        cells += [plus_minus(row["mean"], math.nan, percent), _number(row["rank"], ".2f")]
        rows.append(cells)
    unit = " in percent" if percent else f" in {metric.unit}" if metric.unit else ""
    better = ", lower is better," if metric.higher_is_better is False else ""
    title = f"{metric.title}{unit}{better} on {len(found.names)} data sets, each the mean over clients and seeds"
    return TextTable(title, [columns.VARIANT, *found.names, MEAN, columns.RANK], rows, _score_notes(found))


def best(found: ComparisonSet, name: str) -> set[str]:
    """Return the best mean on a data set as it is written, see :mod:`fedlab.comparison.best`."""
    if not coverage.rivals_have_the_same(found.comparisons[found.names.index(name)]):
        return set()
    means = [found.interval(variant, name).mean for variant in found.ranked]
    return found.metric_table.best_as_shown(found.metric, means)


def tests(found: ComparisonSet) -> TextTable:
    """Return a row a variant that is not the baseline: on how many data sets it is better, and the signed-rank test."""
    percent = found.metric_table.is_fraction(found.metric)
    rows = [
        [
            str(row["variant"]),
            plus_minus(row["difference"], math.nan, percent, signed=True),
            f"{row['wins']:.0f} of {row['data_sets']:.0f}",
            p_value(row["p_wilcoxon"]),
            p_value(row["p_wilcoxon_holm"]),
        ]
        for row in found.summary().to_dict("records")
        if row["variant"] != found.baseline
    ]
    heads = [columns.VARIANT, columns.DIFFERENCE, columns.WINS, columns.P_WILCOXON, columns.P_WILCOXON_HOLM]
    title = f"Tests against {found.baseline}, over {len(found.names)} data sets"
    return TextTable(title, heads, rows, _test_notes(found))


def _score_notes(found: ComparisonSet) -> list[str]:
    aside = ", ".join(found.uses_labels)
    return [
        *([f"{aside}: learns from clients' labels, which the others do not have."] if aside else []),
        f"Bold: the best of a column{f', without {aside}' if aside else ''}.",
        "± is half a 95 % Student t interval over seeds.",
        f"{columns.RANK}: mean over data sets{f', without {aside}' if aside else ''}, 1 is best.",
        ranking_note(found),
        *left_out_notes(found),
    ]


def ranking_note(found: ComparisonSet) -> str:
    """Return what Friedman's and Nemenyi's tests say, or why they say nothing."""
    ranking = found.ranking()
    if ranking is None:
        return "Friedman's test and a critical difference need three variants and three data sets."
    p = p_value(ranking.p)
    return (
        f"Friedman's test (chi-square approximation) that all are alike: p {p if p.startswith('<') else f'= {p}'}; "
        f"ranks that differ by less than {ranking.width:.2f} are not told apart (Nemenyi, level 0.05)."
    )


def left_out_notes(found: ComparisonSet) -> list[str]:
    """Return which variants are not compared, for want of a result on every data set, or are not in every respect."""
    missing = [f"Not on every data set: {', '.join(found.left_out)}."] if found.left_out else []
    return [*missing, *found.incomplete]


def _test_notes(found: ComparisonSet) -> list[str]:
    """Return what the columns of the tests mean."""
    return [
        f"{columns.DIFFERENCE}: to {found.baseline}, mean over data sets.",
        f"{columns.WINS}: so many data sets.",
        "Wilcoxon: two-sided signed-rank test over data sets, a pair each; "
        f"p is {columns.wilcoxon_method(found.summary())}, and with Holm corrected over all rows.",
    ]


def _number(value: float, places: str) -> str:
    return f"{value:{places}}" if math.isfinite(value) else MISSING
