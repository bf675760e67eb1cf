"""A comparison read back: numbers by hand from run directories that are written down here."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats

import fedlab
import few_clients
import many_clients
from fedlab.comparison import coverage, files, learning_curves, page, page_tables, text_tables
from fedlab.comparison.cell import FAILED, FINISHED, Cell
from fedlab.comparison.result import Comparison
from fedlab.errors import RunError
from fedlab.metrics import Metric
from fedlab.runs.directory import RunDirectory
from fedlab.runs.metrics import MetricTable

# accuracy of (near, far) in rounds 0 and 1, by variant and seed
SCORES = {
    "low": {0: [(0.4, 0.2), (0.5, 0.3)], 1: [(0.4, 0.2), (0.6, 0.4)], 2: [(0.4, 0.2), (0.5, 0.5)]},
    "high": {0: [(0.4, 0.2), (0.7, 0.5)], 1: [(0.6, 0.6), (0.9, 0.3)], 2: [(0.4, 0.4), (0.6, 0.6)]},
}


@pytest.fixture
def comparison(tmp_path):
    cells = [
        Cell(label, "s", seed, {}, few_clients.write_run(tmp_path, label, seed, rounds, "accuracy_average"), FINISHED)
        for label, seeds in SCORES.items()
        for seed, rounds in seeds.items()
    ]
    cells.append(Cell("high", "s", 3, {}, "cells/none-3", FAILED, "no\nluck"))
    made = Comparison(tmp_path, "toy", [0, 1, 2, 3], "low", "accuracy", cells, target=0.6)
    made.write()
    return Comparison.read(tmp_path)


def test_what_was_written_is_read_back(comparison, tmp_path):
    assert fedlab.Comparison.read(tmp_path) == comparison
    assert comparison.labels == ["low", "high"]
    assert [cell.name for cell in comparison.failed] == ["high, seed 3"]
    facts = json.loads((tmp_path / "comparison.json").read_text())
    assert "directory" not in facts
    assert facts["cells"][-1]["error"] == "no\nluck"


def test_no_comparison_is_a_sentence(tmp_path):
    with pytest.raises(RunError, match="is no comparison: it has no comparison.json; `fedlab compare` makes one"):
        Comparison.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cells": [{"a": 1}]}', '{"cells": [], "directory": "x"}', "\xff"])
def test_facts_that_cannot_be_read_are_a_sentence(tmp_path, text):
    (tmp_path / "comparison.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"comparison.json is damaged, or of another version .* delete it, and the same"):
        Comparison.read(tmp_path)


def test_the_frame_has_a_row_for_each_cell_round_and_client(comparison):
    frame = comparison.frame
    assert len(frame) == 6 * 2 * 2
    assert frame.attrs["directory"] == str(comparison.directory)
    row = frame[(frame.label == "high") & (frame.seed == 1) & (frame["round"] == 1) & (frame.client == "far")].iloc[0]
    assert (row.score, row.accuracy_average, row.accuracy_source_only) == (0.3, 0.3, 0.99)
    assert (row.bytes_down, row.bytes_up, row.seconds) == (100, 10, 4.0)  # without tests, cumulated
    assert len(comparison.final) == 12


def test_the_summary_by_hand(comparison):
    low, high = (row for _, row in comparison.summary().iterrows())
    first, second = [0.4, 0.5, 0.5], [0.6, 0.6, 0.6]
    assert (low["mean"], high["mean"]) == (pytest.approx(1.4 / 3), pytest.approx(0.6))
    assert (low["n"], low["metric"]) == (3, "accuracy_average")
    test = stats.ttest_rel(second, first)
    assert (high["difference"], high["p"]) == (pytest.approx(0.4 / 3), pytest.approx(test.pvalue))
    assert high["p_holm"] == high["p"]  # the only comparison
    assert high["difference_low"] == pytest.approx(test.confidence_interval().low)
    assert math.isnan(low["difference"]) and math.isnan(low["p_holm"])
    assert (low["rank"], high["rank"]) == (pytest.approx((5 * 2 + 1) / 6), pytest.approx((5 * 1 + 2) / 6))
    assert (low["rounds"], low["bytes"], low["seconds"]) == (1.0, 220.0, 4.0)


def test_the_share_of_the_gap_to_the_upper_reference(comparison, tmp_path):
    top = [
        Cell(
            "top",
            "s",
            seed,
            {},
            few_clients.write_run(tmp_path, "top", seed, [(0.4, 0.2), (0.9, 0.9)], "accuracy_average"),
            FINISHED,
        )
        for seed in SCORES["low"]
    ]
    found = (
        replace(comparison, cells=[*comparison.cells, *top], upper_bound="top").summary().set_index("label")["closed"]
    )
    assert math.isnan(found["low"])  # the baseline itself
    assert found["top"] == pytest.approx(1.0)
    assert found["high"] == pytest.approx((0.6 - 1.4 / 3) / (0.9 - 1.4 / 3))
    unsure = replace(comparison, upper_bound="high").summary()
    assert unsure["closed"].isna().all()  # "high" may be no better than "low": the interval of the gap holds 0
    assert comparison.summary()["closed"].isna().all()  # nothing is asked for


def test_where_less_is_better_the_gap_is_closed_downwards(comparison, tmp_path):
    rounds = {"low": [(0.9, 0.9)], "high": [(0.7, 0.7)], "top": [(0.5, 0.5)]}
    cells = [
        Cell(label, "s", seed, {}, few_clients.write_run(tmp_path, f"{label}-loss", seed, each, "loss"), FINISHED)
        for label, each in rounds.items()
        for seed in (0, 1)
    ]
    losses = (
        replace(comparison, cells=cells, metric="loss", upper_bound="top", target=None).summary().set_index("label")
    )
    assert losses["closed"]["high"] == pytest.approx(0.5)
    assert losses["closed"]["top"] == pytest.approx(1.0)


def test_a_client_without_an_answer_is_left_out_of_the_difference_on_both_sides(comparison):
    """Its absence is not the variant's merit."""
    for seed in SCORES["high"]:
        run = RunDirectory.open(comparison.directory / f"cells/high-{seed}")
        records = run.rounds()
        del records[-1]["clients"]["far"]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    high = comparison.summary().set_index("label").loc["high"]
    near = [[rounds[-1][0] for rounds in SCORES[label].values()] for label in ("high", "low")]
    assert high["difference"] == pytest.approx(sum(near[0]) / 3 - sum(near[1]) / 3)
    assert high["p"] == pytest.approx(stats.ttest_rel(*near).pvalue)


def of_two(folder, high, lost=(), **options):
    """Low and high on some seeds, high with its own scores; ``lost`` are seeds whose last test lacks the client far."""
    cells = []
    for label, level in (("low", [(0.8, 0.4), (0.4, 0.0)]), ("high", high)):
        for seed, scores in enumerate(level):
            status = FINISHED if scores else FAILED
            rounds = [(0.1, 0.1), scores or (0.0, 0.0)]
            run = few_clients.write_run(folder, label, seed, rounds, "accuracy_average")
            cells.append(Cell(label, "s", seed, {}, run, status))
            if label == "high" and seed in lost:
                records = RunDirectory.open(folder / run).rounds()
                del records[-1]["clients"]["far"]
                (folder / run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return Comparison(folder, "toy", [0, 1], "low", "accuracy", cells, **options)


@pytest.mark.parametrize(
    ("high", "lost", "differ", "note"),
    [
        ([(0.7, 0.3), (0.3, 0.0)], (0, 1), "clients", "high has no score of far (seed 0, 1), which another row has."),
        ([(0.7, 0.3), (0.39, 0.0)], (1,), "seeds", "high has no score of far (seed 1), which another row has."),
        ([(0.7, 0.3), None], (), "seeds", "high is a mean over 1 of 2 seeds."),
    ],
)
def test_a_row_that_lost_its_hard_client_or_seed_is_not_the_best_for_that(tmp_path, high, lost, differ, note):
    """It loses on each client and seed that both have, and its mean is the larger number."""
    made = of_two(tmp_path, high, lost)
    means = made.summary().set_index("label")["mean"]
    assert means["high"] > means["low"]
    scores, domains = text_tables.scores(made), text_tables.domains(made)
    assert not any(isinstance(cell, text_tables.Best) for row in scores.rows for cell in row)
    assert note in scores.notes and note in domains.notes
    assert not any(isinstance(row[-1], text_tables.Best) for row in domains.rows)  # of the client far
    rendered = page.render(made)
    assert f"They do not all have the same {differ}: compare those that do." in rendered
    assert note in rendered


def test_rows_with_the_same_clients_and_seeds_need_no_note(tmp_path):
    made = of_two(tmp_path, [(0.7, 0.3), (0.3, 0.0)])
    assert coverage.notes(made) == [] and coverage.rivals_have_the_same(made)
    assert isinstance(text_tables.scores(made).rows[0][1], text_tables.Best)


def test_the_share_of_the_gap_is_of_the_seeds_that_all_three_have(tmp_path):
    """Closing half of it on each seed is half of it."""
    levels = {"low": [0.5] * 5, "mid": [0.55] * 4, "top": [0.6] * 4 + [0.7]}
    cells = [
        Cell(
            label,
            "s",
            seed,
            {},
            few_clients.write_run(tmp_path, label, seed, [(level, level)], "accuracy_average"),
            FINISHED,
        )
        for label, each in levels.items()
        for seed, level in enumerate(each)
    ]
    made = Comparison(tmp_path, "toy", list(range(5)), "low", "accuracy", cells, upper_bound="top")
    assert made.summary().set_index("label").loc["mid", "closed"] == pytest.approx(0.5)


def test_a_curve_ends_with_the_mean_of_all_seeds_though_one_of_them_went_on_alone(tmp_path):
    """A budget in seconds and early stopping end runs at different rounds, and those that go on are no mean."""
    rounds = {0: [(0.1, 0.1), (0.2, 0.2)], 1: [(0.1, 0.1), (0.3, 0.3), (0.5, 0.5)]}
    cells = [
        Cell("high", "s", seed, {}, few_clients.write_run(tmp_path, "high", seed, each, "accuracy_average"), FINISHED)
        for seed, each in rounds.items()
    ]
    made = Comparison(tmp_path, "toy", [0, 1], "high", "accuracy", cells)
    styles = page_tables.variants(made, made.summary())
    drawings = [*learning_curves.curve_figures(made, styles), *learning_curves.cost_figures(made, styles)]
    texts = [drawing.picture.alt for drawing in drawings]
    assert made.summary()["mean"].tolist() == pytest.approx([0.35])
    assert texts[0] == "accuracy by round, mean over clients; at the end high 35.0 %"
    assert texts[-2] == "accuracy by bytes: high 35.0 % after 440 B"
    assert texts[-1] == "accuracy by seconds: high 35.0 % after 5 seconds"


def test_a_servers_metric_never_stands_beside_that_of_clients(comparison, tmp_path):
    """A strategy's own loss on its source is not what other variants' clients report of their test data."""
    run = RunDirectory.open(tmp_path / few_clients.write_run(tmp_path, "other", 0, [(0.1, 0.1), (0.1, 0.1)], "other"))
    records = [{**record, "server": {"accuracy": 0.95}} for record in run.rounds()]
    for record in records:
        record["clients"] = {client: {"other": 0.1} for client in record["clients"]}
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    cells = [*comparison.cells, Cell("other", "s", 0, {}, f"cells/{run.path.name}", FINISHED)]
    summary = replace(comparison, cells=cells).summary().set_index("label")
    assert summary.loc["other", ["mean", "difference", "rank"]].isna().all()
    assert summary["rank"].tolist()[:2] == comparison.summary()["rank"].tolist()


def test_ranks_are_among_the_rows_with_the_same_clients(comparison, tmp_path):
    """Where a grid's option changes who the clients are, nobody is ranked against a row that never met them."""
    other = RunDirectory.open(
        tmp_path / few_clients.write_run(tmp_path, "other", 0, [(0.1, 0.1), (0.1, 0.1)], "accuracy_average")
    )
    lines = (other.path / "metrics.jsonl").read_text()
    (other.path / "metrics.jsonl").write_text(lines.replace('"near"', '"nobody"').replace('"far"', '"else"'))
    cells = [*comparison.cells, Cell("other", "s", 0, {}, f"cells/{other.path.name}", FINISHED)]
    before, after = comparison.summary(), replace(comparison, cells=cells).summary()
    assert after["rank"].tolist() == [*before["rank"], 1.0]


def test_the_target_counts_when_all_seeds_reach_it(comparison):
    low, high = (row for _, row in comparison.summary().iterrows())
    assert (low["reached"], math.isnan(low["reach_rounds"])) == (0, True)
    assert high["reached"] == 3
    assert high["reach_rounds"] == pytest.approx(2 / 3)  # seed 1 before the first round
    assert high["reach_bytes"] == pytest.approx(2 / 3 * 220)
    assert high["reach_seconds"] == pytest.approx((4 + 2 + 4) / 3)


@pytest.mark.parametrize(("sampled", "rounds"), [(False, 3.0), (True, 1.0)])
def test_rounds_without_a_client_do_not_reach_a_target(tmp_path, sampled, rounds):
    """The hard client joins in round 2 and is lost in round 4: until then the easy one alone is at the target."""
    written = few_clients.write_run(
        tmp_path, "late", 0, [(0.5, math.nan), (0.8, math.nan), (0.8, 0.2), (0.8, 0.6), (0.9, math.nan)], "accuracy"
    )
    if sampled:
        path = tmp_path / written / "config.toml"
        path.write_text(path.read_text().replace("fraction_evaluate = 1.0", "fraction_evaluate = 0.5"))
    lines = (tmp_path / written / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:  # a client that is away reports nothing
        record["clients"] = {name: of for name, of in record["clients"].items() if not math.isnan(of["accuracy"])}
    if sampled:  # one client in each round
        for record in records:
            record["clients"] = dict(list(record["clients"].items())[:1])
    (tmp_path / written / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    cells = [Cell("late", "s", 0, {}, written, FINISHED)]
    made = Comparison(tmp_path, "toy", [0], "late", "accuracy", cells, target=0.7)
    (row,) = made.summary().to_dict("records")
    assert (row["reached"], row["reach_rounds"]) == (1, rounds)
    assert made.curves["complete"].tolist() == ([True] * 5 if sampled else [False, False, True, True, False])
    assert "A round in which a client was not tested does not count." in " ".join(text_tables.reach(made).notes)


def test_domains_are_a_row_for_each_client(comparison):
    table = comparison.domains().set_index(["label", "client"])
    assert table.loc[("high", "near"), "mean"] == pytest.approx((0.7 + 0.9 + 0.6) / 3)
    assert table.loc[("low", "far"), "n"] == 3


def test_files_say_the_same(comparison, tmp_path):
    files.write_files(comparison)
    table = pd.read_csv(tmp_path / "table.csv").set_index("label")
    assert table.loc["high", "mean"] == pytest.approx(0.6)
    assert table.loc["high", "near"] == pytest.approx((0.7 + 0.9 + 0.6) / 3)
    facts = json.loads((tmp_path / "table.json").read_text())
    assert facts["rows"][0]["difference"] is None
    assert facts["failed"] == [{"cell": "high, seed 3", "error": "no\nluck"}]
    markdown = (tmp_path / "table.md").read_text()
    assert "| high | **60.0 ± 0.0** | +13.3 ± 14.3 |" in markdown
    paper = (tmp_path / "table.tex").read_text()
    assert r"high & \textbf{60.0 $\pm$ 0.0} & +13.3 $\pm$ 14.3 &" in paper and paper.count(r"\toprule") == 5
    assert all(mark not in paper.split("\n\n", 1)[1] for mark in ("±", "↑", " % "))
    assert (tmp_path / "report.html").exists()


def test_options_pair_with_the_same_value_of_the_baseline(tmp_path):
    scores = {("low", "1"): 0.5, ("low", "2"): 0.6, ("high", "1"): 0.55, ("high", "2"): 0.9, ("other", ""): 0.7}
    cells = [
        Cell(
            label,
            "s",
            seed,
            {"k": value} if value else {},
            few_clients.write_run(tmp_path, f"{label}{value}", seed, [(score, score + seed * 0.01)], "accuracy"),
            FINISHED,
        )
        for (label, value), score in scores.items()
        for seed in (0, 1)
    ]
    summary = Comparison(tmp_path, "toy", [0, 1], "low", "accuracy", cells, {"k": ["1", "2"]}).summary()
    found = summary.set_index(["label", "k"])["difference"]
    assert found["high", "1"] == pytest.approx(0.05)
    assert found["high", "2"] == pytest.approx(0.3)
    assert math.isnan(found["other", ""])  # the option has no effect on it, and two baselines to choose from


def test_rounds_may_be_an_option_of_the_grid_and_a_client_be_called_as_a_column(tmp_path):
    """What was asked for and what was measured have the same name: neither may replace the other."""
    cells = []
    for label, gain in (("low", 0.0), ("high", 0.1)):
        for rounds in ("1000", "2"):
            run = few_clients.write_run(tmp_path, label + rounds, 0, [(0.1, 0.1), (0.5, 0.5 + gain)], "accuracy")
            lines = (
                (tmp_path / run / "metrics.jsonl").read_text().replace('"near"', '"mean"').replace('"far"', '"rank"')
            )
            lines = lines.replace('"accuracy_source_only": 0.99', '"score": 0.99, "seed": 0.99, "round": 0.99')
            (tmp_path / run / "metrics.jsonl").write_text(lines.replace('"round": 1,', f'"round": {rounds},'))
            cells.append(Cell(label, "s", 0, {"rounds": rounds}, run, FINISHED))
    made = Comparison(tmp_path, "toy", [0], "low", "accuracy", cells, {"rounds": ["1000", "2"]}, target=0.2)
    summary = made.summary()
    assert summary["option_rounds"].tolist() == ["1000", "2"] * 2 and summary["rounds"].tolist() == [1000, 2] * 2
    assert summary["difference"].tolist()[2:] == pytest.approx([0.05, 0.05])
    scores, *_, reach = text_tables.tables(made)
    assert scores.heads[1] == "option rounds" and scores.heads[-3] == "rounds"
    assert [(row[1], row[-3]) for row in scores.rows] == [("1000", "1000"), ("2", "2")] * 2
    assert [row[3] for row in reach.rows] == ["1000", "2"] * 2
    files.write_files(made)
    table = pd.read_csv(tmp_path / "table.csv").set_index(["label", "option_rounds"])
    assert table.loc[("high", 2), ["mean", "client_mean", "client_rank"]].tolist() == pytest.approx([0.55, 0.5, 0.6])
    assert "high & 1000 & 1000 &" in (tmp_path / "table.tex").read_text()  # of the costs


def test_nothing_finished_yet_is_an_empty_table(tmp_path):
    empty = Comparison(tmp_path, "toy", [0], "low", "accuracy", [Cell("low", "s", 0, {}, "cells/a-0")])
    assert len(empty.frame) == len(empty.summary()) == len(empty.domains()) == 0
    assert [table.rows for table in text_tables.tables(empty)] == [[], []]


def test_words_for_people():
    assert text_tables.plus_minus(0.756, 0.012, percent=True) == "75.6 ± 1.2"
    assert text_tables.plus_minus(0.062, math.nan, percent=True, signed=True) == "+6.2"
    assert text_tables.plus_minus(12.3456, 0.5, percent=False) == "12.35 ± 0.5"
    assert text_tables.plus_minus(math.nan, math.nan, percent=True) == "-"


def test_a_declared_metric_has_its_title_unit_and_direction(tmp_path):
    table = MetricTable((Metric("energy", "energy used", "kcal", higher_is_better=False),))
    cells = []
    for label, value in (("low", 3.0), ("high", 2.0)):
        run = few_clients.write_run(tmp_path, label, 0, [(value, value)], "energy")
        RunDirectory.open(tmp_path / run).update_manifest(**table.to_manifest())
        cells.append(Cell(label, "s", 0, {}, run, FINISHED))
    comparison = Comparison(tmp_path, "toy", [0], "low", "energy", cells, target=2.5)
    assert comparison.more_is_better is False
    assert comparison.summary()["rank"].tolist() == [2.0, 1.0]
    scores, *_, reach = text_tables.tables(comparison)
    assert (
        scores.title == "toy: energy used in kcal, lower is better, after the last round, mean over clients and seeds 0"
    )
    assert scores.heads[1] == "energy used ↓" and scores.rows[1][1:3] == ["2", "-1"]
    assert reach.title == "Until energy used is 2.5 kcal"


def test_tables_of_cells_are_merged(comparison, tmp_path):
    RunDirectory.open(comparison.path(comparison.cells[0])).update_manifest(
        metrics=[{"name": "energy", "unit": "kcal"}]
    )
    merged = Comparison.read(tmp_path).metric_table
    assert merged.find("energy").unit == "kcal" and merged.is_fraction("accuracy")


# --- a thousand clients ---


@pytest.fixture
def many(tmp_path):
    """Two variants on two seeds; 1,000 clients of which 50 train in a round, all tested in rounds 0, 5 and 10."""
    return of_many(tmp_path)


def of_many(folder, **options):
    cells = []
    for label, level in (("low", 0.6), ("high", 0.7)):
        for seed in range(2):
            run = many_clients.write_run(folder / "cells", seed=seed, level=level, name=label, **options)
            cells.append(Cell(label, "fedavg", seed, {}, f"cells/{run.directory.name}", FINISHED))
    return Comparison(folder, "toy", [0, 1], "low", "accuracy", cells, target=0.3)


def test_many_clients_are_a_distribution_in_every_table(many):
    scores = [sorted(of["accuracy"] for of in result.final().values()) for cell, result in many.results[:2]]
    found = many.breakdown().set_index(["label", "client"])
    assert found.loc[("low", "worst tenth"), "mean"] == pytest.approx(sum(sum(of[:100]) for of in scores) / 200)
    assert found.loc[("low", "minimum"), "mean"] == pytest.approx(sum(of[0] for of in scores) / 2)
    assert found.loc[("low", "median"), "n"] == 2
    assert many.has_many_clients and many.tested_clients == 1000
    table = text_tables.domains(many)
    assert table.title == "accuracy over 1000 clients"
    assert list(table.heads) == ["variant", "worst tenth", "10 %", "median", "90 %"]
    files.write_files(many)
    assert len(pd.read_csv(many.directory / "clients.csv")) == 2000
    assert {"worst tenth", "median_low"} <= set(pd.read_csv(many.directory / "table.csv").columns)
    page = (many.directory / "report.html").read_text()
    assert len(page) < 200_000
    assert "The distribution over 1000 clients" in page and "worst tenth of clients" in page


def test_traffic_counts_clients_that_are_not_in_the_last_round(many):
    assert many.summary()["bytes"].tolist() == [10 * 50 * 1500] * 2
    of_one = many.curves[(many.curves.label == "low") & (many.curves.seed == 0)]
    assert of_one["bytes"].tolist() == [50 * 1500 * number for number in range(11)]


def test_rounds_without_a_test_are_no_score_and_do_not_reach_a_target(many):
    curve = many.curves[(many.curves.label == "low") & (many.curves.seed == 0)].set_index("round")["score"]
    assert curve.notna().tolist() == [number % 5 == 0 for number in range(11)]
    assert many.summary()["reach_rounds"].tolist() == [5.0, 5.0]


def test_clients_that_trained_and_were_not_tested_have_no_row(tmp_path):
    sampled = of_many(tmp_path, tested=30)
    assert sampled.tested_clients == 30
    assert len(sampled.domains()) == 2 * len({name for _, result in sampled.results for name in result.final()})
    assert text_tables.domains(sampled).title == "accuracy over 30 clients"
    files.write_files(sampled)


def test_a_comparison_of_global_models_needs_no_clients(tmp_path):
    made = of_many(tmp_path, tested=0, global_test=True)
    assert made.is_global and made.summary()["mean"].tolist() == pytest.approx([0.7, 0.8])
    assert made.summary()["bytes"].tolist() == [10 * 50 * 1500] * 2
    files.write_files(made)
    assert not (tmp_path / "clients.csv").exists()
