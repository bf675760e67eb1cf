"""Names of the columns of a comparison's tables, one for the page, Markdown, LaTeX and a terminal, and what each means.

``table.csv`` has the same columns by the names that a program uses; the docs page "comparison" lists both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fedlab.comparison.data_sets import APPROXIMATE, EXACT

if TYPE_CHECKING:
    import pandas as pd

    from fedlab.comparison.result import Comparison

VARIANT, RANK, GAP = "variant", "rank", "gap closed"
DIFFERENCE, P, P_HOLM, EFFECT = "difference", "p", "p, Holm", "effect g"
WINS, P_WILCOXON, P_WILCOXON_HOLM = "better on", "Wilcoxon p", "Wilcoxon p, Holm"
ROUNDS, TRAFFIC, TIME = "rounds", "traffic", "time"
REACHED, TO_ROUNDS, TO_TRAFFIC, TO_TIME = "reached", "rounds to target", "traffic to target", "time to target"
OF_TABLES = frozenset({VARIANT, RANK, GAP, DIFFERENCE, P, EFFECT, WINS, ROUNDS, TRAFFIC, TIME, REACHED})

DISTRIBUTIONS = {EXACT: "exact", APPROXIMATE: "from the normal approximation"}


def option_heads(comparison: Comparison) -> list[str]:
    """Return the heads of the grid's options: their short names, told from what is measured under the same name."""
    return [f"option {name}" if name in OF_TABLES else name for name in comparison.short_options]


def row_name(comparison: Comparison, key: Sequence[str]) -> str:
    """Return a variant's name: its label, and the options of the grid that have an effect on it, shortened if clear."""
    options = [f"{option}={value}" for option, value in zip(comparison.short_options, key[1:], strict=True) if value]
    return ", ".join([key[0], *options])


def notes(comparison: Comparison, heads: Iterable[str]) -> list[str]:
    """Return a sentence for each column of a table that needs one."""
    found = set(heads)
    return [sentence for head, sentence in _notes(comparison).items() if head in found]


def _notes(comparison: Comparison) -> dict[str, str]:
    baseline, paired = comparison.baseline, " and options" if comparison.grid else ""
    return {
        DIFFERENCE: f"{DIFFERENCE}: to {baseline}, paired by seed{paired}.",
        P: f"{P}: paired t-test over seeds, two-sided.",
        P_HOLM: f"{P_HOLM}: of the paired t-test over seeds, corrected over all rows.",
        EFFECT: f"{EFFECT}: Hedges' effect size over seeds.",
        WINS: f"{WINS}: so many clients.",
        P_WILCOXON: f"Wilcoxon: two-sided signed-rank test over clients, each one's mean over seeds; "
        f"p is {wilcoxon_method(comparison.summary())}.",
        GAP: f"{GAP}: of that from {baseline} to {comparison.upper_bound}.",
        RANK: f"{RANK}: mean over clients and seeds, 1 is best.",
        ROUNDS: f"{ROUNDS}, {TRAFFIC} and {TIME}: of training, without tests, mean over seeds.",
        REACHED: f"{REACHED}: seeds that reach the target; means over seeds, where all of them do. "
        "A round in which a client was not tested does not count.",
    }


def wilcoxon_method(summary: pd.DataFrame) -> str:
    """Return how a summary's signed-rank tests found p, "exact" for instance; "" where nothing was tested."""
    used = set(summary["wilcoxon_method"])
    return " or ".join(words for method, words in DISTRIBUTIONS.items() if method in used)
