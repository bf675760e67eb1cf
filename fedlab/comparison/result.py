"""A comparison on disk, read back: its cells, one tidy frame of all of them, and its table.

::

    comparisons/<preset>/
        comparison.json     what was asked for, and each cell: its run directory and how it ended
        cells/              a run directory for each cell, named by the hash of its options
        pretrained/         pre-trainings that cells share
        table.csv table.json table.md table.tex report.html
        slurm/ ray.log      jobs and logs of cells on a cluster
        figures/            the figures of the page as PDF files, where `fedlab report --pdf` wrote them
        earlier/            the same of comparisons before it with other options, see fedlab.comparison.earlier
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab.comparison import frame_rows
from fedlab.comparison.breakdown import by_client, by_quantile
from fedlab.comparison.cell import FAILED, FINISHED, Cell
from fedlab.comparison.data_sets import CriticalDifference
from fedlab.comparison.frame_rows import SERVER
from fedlab.comparison.mean_curves import mean_curves
from fedlab.comparison.summary import COLUMNS, Scores, common_means, rank_rows, summarize
from fedlab.errors import RunError
from fedlab.files import write_atomically
from fedlab.runs.client_distribution import FEW
from fedlab.runs.metrics import MetricTable
from fedlab.runs.numerics import different_facts
from fedlab.runs.result import Result

if TYPE_CHECKING:
    import pandas as pd

FACTS, FIGURES = "comparison.json", "figures"
TAKEN = frozenset(COLUMNS) | {"label", "seed", "round", "client", "score"}  # columns that an option's may not replace


@dataclass(frozen=True)
class Comparison:
    """Strategies side by side, on the same seeds.

    Attributes
    ----------
    directory
        The comparison's folder.
    baseline
        Label of the variant that the others are compared with.
    upper_bound
        Label of the upper reference, which learns from labels; "" where none is compared.
    labeled
        Labels of all variants whose clients learn from labels, where others do not.
    metric
        Group of the compared metrics; ``summary()["metric"]`` says by which of its variants each row is judged. Where
        no client reports it, a metric of the server's score.
    grid
        Option to its values, as they were written.
    """

    directory: Path
    preset: str
    seeds: list[int]
    baseline: str
    metric: str
    cells: list[Cell]
    grid: Mapping[str, list[str]] = field(default_factory=dict)
    upper_bound: str = ""
    labeled: list[str] = field(default_factory=list)
    target: float | None = None
    budget: Mapping[str, float] | None = None
    command: str = ""
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commit: str = ""

    @classmethod
    def read(cls, folder: Path | str) -> Comparison:
        """Read a comparison's folder.

        Raises
        ------
        RunError
            When it is none, or its facts cannot be read.
        """
        path = Path(folder).resolve() / FACTS
        if not path.is_file():
            raise RunError(f"{path.parent} is no comparison: it has no {FACTS}; `fedlab compare` makes one")
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            cells = [Cell(**cell) for cell in facts.pop("cells")]
            return cls(directory=path.parent, cells=cells, **facts)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(
                f"{path} is damaged, or of another version of fedlab ({type(error).__name__}: {error}); delete it, and "
                "the same `fedlab compare` makes it again from the cells that are there"
            ) from None

    def write(self) -> None:
        """Write the facts, atomically."""
        facts = {name: value for name, value in asdict(self).items() if name != "directory"}
        write_atomically(self.directory / FACTS, json.dumps(facts, indent=2).encode() + b"\n")

    # --- cells ---

    @property
    def failed(self) -> list[Cell]:
        """Cells that could not be run."""
        return [cell for cell in self.cells if cell.status == FAILED]

    @property
    def labels(self) -> list[str]:
        """Variants in the order in which they were asked for."""
        return list(dict.fromkeys(cell.label for cell in self.cells))

    @property
    def keys(self) -> list[str]:
        """Columns that tell the table's rows apart: ``label`` and the grid's options."""
        return ["label", *self.option_columns]

    @property
    def option_columns(self) -> list[str]:
        """Columns of the grid's options: their names, and ``option_rounds`` where what is measured has that name."""
        return [f"option_{option}" if option in TAKEN else option for option in self.grid]

    @property
    def short_options(self) -> list[str]:
        """Names of the grid's options for people: the last part, where that is clear."""
        short = [option.rpartition(".")[2] for option in self.grid]
        return short if len(set(short)) == len(short) else list(self.grid)

    @cached_property
    def is_client_metric(self) -> bool:
        """True if clients report the metric: where those of one variant do, none is judged by its server's metrics."""
        return any(self.metric_of(result) for _, result in self.results)

    @property
    def is_global(self) -> bool:
        """True if the metric is of the global model alone, so that there are no numbers client by client."""
        return set(self.frame["client"]) == {SERVER}

    def path(self, cell: Cell) -> Path:
        """Return the run directory of a cell."""
        return self.directory / cell.run

    @cached_property
    def results(self) -> list[tuple[Cell, Result]]:
        """Finished cells with their results."""
        return [(cell, Result.read(self.path(cell))) for cell in self.cells if cell.status == FINISHED]

    @cached_property
    def metric_table(self) -> MetricTable:
        """The metrics and phases that the runs of the finished cells declare, merged."""
        return MetricTable.merged(result.metric_table for _, result in self.results)

    @property
    def uses_labels(self) -> frozenset[str]:
        """Labels of variants whose clients learn from labels, where those of others have none."""
        return frozenset({*self.labeled, self.upper_bound} - {""})

    @property
    def commits(self) -> list[str]:
        """Commits of fedlab that finished cells were run with; several may not be comparable."""
        return sorted({str(result.manifest.get("git_commit", "")) for _, result in self.results} - {""})

    @property
    def machine_differences(self) -> list[str]:
        """Differences between the machines of finished cells, for which alone bits may differ."""
        manifests = [result.manifest for _, result in self.results]
        return sorted({fact for manifest in manifests[1:] for fact in different_facts(manifests[0], manifest)})

    # --- frames ---

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a finished cell, round and client.

        Columns: ``label``, ``strategy``, a column for each option of the grid (text; empty where it has no effect),
        ``seed``, ``round``, ``client``, ``score`` (the metric that the variant is judged by), every metric whose
        name is none of these, ``bytes_down`` and ``bytes_up`` (training, of this client, cumulated), ``bytes`` (all
        clients together) and ``seconds`` (the whole run's without tests and scores), both cumulated. A client that took
        part in a round without a test has no score there. Where the metric is of the server's score, there is one
        "client", named "global model", and a row a round that has a score.
        """
        import pandas as pd

        rows = []
        for cell, result in self.results:
            place = self._place(cell)  # goes over a metric of such a name
            rows += [{**place, **row, **place} for row in self._rows(result)]
        frame = pd.DataFrame(rows, columns=None if rows else [*self.keys, "strategy", "seed", "round", "client"])
        frame.attrs["directory"] = str(self.directory)
        return frame

    def _rows(self, result: Result) -> Iterator[dict[str, Any]]:
        if self.is_client_metric:
            return frame_rows.by_client(result, self.metric, self.metric_of(result))
        return frame_rows.of_server(result, self.metric)

    def _place(self, cell: Cell) -> dict[str, Any]:
        columns = zip(self.option_columns, self.grid, strict=True)
        options = {column: cell.options.get(option, "") for column, option in columns}
        return {"label": cell.label, "strategy": cell.strategy, **options, "seed": cell.seed}

    def metric_of(self, result: Result) -> str:
        """Return the clients' metric by which a run is judged: the best informed of the group; "" where it has none.

        A client that does not report it (before the first round, or a late joiner) is judged by the best that it
        reports.
        """
        table = result.metric_table
        return table.primary_metric([name for name in result.metric_names if table.group(name) == self.metric])

    @cached_property
    def final(self) -> pd.DataFrame:
        """The frame's rows after each cell's last round."""
        frame = self.frame
        if frame.empty:
            return frame
        last = frame.groupby([*self.keys, "seed"], sort=False)["round"].transform("max")
        return frame[frame["round"] == last].reset_index(drop=True)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row a cell and round: ``score`` is the plain mean over clients, ``bytes`` their sum, cumulated.

        ``complete`` is False where the mean lacks a client that the cell tested in another round.
        """
        keys = [*self.keys, "seed"]
        places = ((self._place(cell), result) for cell, result in self.results)
        sampled = {tuple(place[key] for key in keys) for place, result in places if not result.tests_everybody}
        return mean_curves(self.frame, keys, sampled)

    def summary(self) -> pd.DataFrame:
        """Return one row a variant and value of the grid's options; the docs page "comparison" explains each column.

        ``label``, the options, ``strategy``, ``metric``, ``n`` (seeds), ``mean``, ``low``, ``high`` (95 % over seeds),
        ``difference``, ``difference_low``, ``difference_high``, ``p``, ``p_holm`` (to the baseline, by seed),
        ``effect`` (Hedges' g), ``data_sets``, ``wins``, ``p_wilcoxon``, ``p_wilcoxon_holm`` (the same by client),
        ``wilcoxon_method`` (``exact`` or ``asymptotic``: the distribution of that p-value),
        ``closed`` (fraction of the gap between baseline and upper reference), ``rank``, ``rounds``, ``bytes``,
        ``seconds`` (means over seeds), ``reached`` (seeds that reached the target), ``reach_rounds``, ``reach_bytes``,
        ``reach_seconds`` (means over seeds; NaN unless all of them did). A round that lacks a client reaches none.
        """
        return self._summary.copy()

    @cached_property
    def _summary(self) -> pd.DataFrame:
        return summarize(self._scores())

    def _scores(self) -> Scores:
        return Scores(
            keys=self.keys,
            final=self.final,
            curves=self.curves,
            metrics={cell.label: self.metric_of(result) or self.metric for cell, result in self.results},
            baseline=self.baseline,
            upper_bound=self.upper_bound,
            target=self.target,
            direction=self.metric_table.direction(self.metric),
        )

    def common_means(self, keys: Sequence[tuple[str, ...]]) -> list[float]:
        """Return the means of rows over the clients and seeds that all of them have; NaN where there are none."""
        return common_means(self._scores(), keys)

    def ranking(self) -> tuple[list[tuple[str, ...]], CriticalDifference] | None:
        """Return rows of the table by their keys, and their ranks over clients with Nemenyi's critical difference.

        Variants whose clients learn from labels are left out. None with fewer than three rows or clients, or where
        rows have different clients.
        """
        rows = [tuple(map(str, key)) for key in self.summary()[self.keys].itertuples(index=False, name=None)]
        keys = [key for key in rows if key[0] not in self.uses_labels]
        found = rank_rows(self._scores(), keys)
        return (keys, found) if found else None

    def domains(self) -> pd.DataFrame:
        """Return a row a variant, value of the grid and client: ``n``, ``mean``, ``low``, ``high`` over seeds."""
        final = self.final
        if self.has_many_clients:  # those that took part and were not tested need no row
            final = final.dropna(subset=["score"])
        return by_client(final, self.keys)

    @cached_property
    def clients(self) -> list[str]:
        """Every client that ever took part; the global model alone where the metric is of the server's score."""
        return list(dict.fromkeys(self.frame["client"]))

    @property
    def tested_clients(self) -> int:
        """Largest number of clients that were tested after the last round of a cell."""
        scores = self.final.dropna(subset=["score"]).groupby([*self.keys, "seed"])["score"]
        return int(scores.size().max()) if len(scores) else 0

    @property
    def has_many_clients(self) -> bool:
        """True if there are too many clients to be shown one by one."""
        return len(self.clients) > FEW

    def breakdown(self) -> pd.DataFrame:
        """Return :meth:`domains`, or of many clients their distribution with its rows' names as ``client``.

        Mean, worst tenth and quantiles are taken over the clients of each seed; the columns are those of ``domains``,
        over seeds.
        """
        return self._breakdown.copy()

    @cached_property
    def _breakdown(self) -> pd.DataFrame:
        if not self.has_many_clients:
            return self.domains()
        return by_quantile(self.final, self.keys, self.metric_table.direction(self.metric))

    @property
    def more_is_better(self) -> bool | None:
        """True if more of the compared metric is better; None where that is not known."""
        return self.metric_table.find(self.metric).higher_is_better
