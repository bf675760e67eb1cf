"""The page is looked at through an HTML parser: what a reader can find in it, and that nothing in it acts or loads."""

from __future__ import annotations

import copy
import math
import re
import shlex

import pytest

import many_clients
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import to_toml
from fedlab.metrics import Metric
from fedlab.registry import find, load_config
from fedlab.report import charts, commands, cost_charts, run_tables
from fedlab.report.figures import REFERENCE, SLOTS, slots
from fedlab.report.panels import Curve, limits, panel
from fedlab.report.run_page import render, render_excerpt, write_report
from fedlab.runs.formatting import elapsed
from fedlab.runs.metrics import MetricTable
from fedlab.runs.result import Result
from pages import Page

TABLE = MetricTable.declared(
    find("strategy", "dualadapt").spec, find("workload", "digits").spec, find("workload", "camvid").spec
)
KINDS = ("train_down", "train_up", "evaluate_down", "evaluate_up")


def record(server_round, clients, **more):
    names = list(clients)
    counts = {name: values.get("num-examples", 1) for name, values in clients.items()}
    metrics = {metric for values in clients.values() for metric in values} - {"num-examples"}
    mean = {}
    for metric in sorted(metrics):
        having = [name for name in names if metric in clients[name]]
        total = sum(counts[name] for name in having)
        mean[metric] = sum(clients[name][metric] * counts[name] for name in having) / total
    trained = 1000 * (server_round > 0)
    return {
        "round": server_round,
        "clients": clients,
        "mean": mean,
        "server": {"loss": 1.0 / (server_round + 1)},
        "bytes": {name: dict(zip(KINDS, (2 * trained, trained, 500, 20), strict=True)) for name in names},
        "failures": [],
        "seconds": {"clients": 1.5, "evaluate": 0.5} if server_round else {"pretrain": 10.0, "evaluate": 0.5},
        **more,
    }


def dualadapt_rounds(count=8):
    rounds = []
    for k in range(count + 1):
        clients = {}
        for i, name in enumerate(("usps", "mnist_m", "optdigits", "synthdigits")):
            values = {"accuracy_source_only": 0.7 - 0.05 * i, "accuracy_global": 0.7 - 0.05 * i + 0.01 * k}
            if k:
                values |= {"accuracy_local": 0.75 - 0.05 * i, "accuracy_average": 0.72 - 0.05 * i + 0.012 * k}
            clients[name] = {**values, "num-examples": 2000.0 - 400 * i}
        rounds.append(record(k, clients))
    return rounds


def preset_config(**overrides):
    return load_config("dualadapt-digits", overrides).options()


def make(directory, rounds, config=None, **manifest):
    config = config or preset_config(rounds=rounds[-1]["round"] or 1)
    known = {
        "status": "finished",
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "git_commit": "98ae502",
        "engine": "inprocess",
        "device": "cpu",
        "weights_sha256": "9f27" * 16,
        **TABLE.to_manifest(),
    }
    return Result(directory, rounds, {**known, **manifest}, config)


@pytest.fixture
def result(tmp_path):
    return make(tmp_path, dualadapt_rounds())


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return Page(render(make(tmp_path_factory.mktemp("run"), dualadapt_rounds())))


def test_the_report_is_one_page_that_loads_and_runs_nothing(result):
    path = write_report(result)
    assert path == result.directory / "report.html"
    assert [entry.name for entry in result.directory.iterdir()] == ["report.html"]  # no temporary file left
    text = path.read_text(encoding="utf-8")
    seen = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    inside = [target for target in seen.targets if not target.startswith("data:text/csv;")]
    assert all(target.startswith("#") and target[1:] in seen.ids for target in inside)
    assert len(seen.ids) == len(set(seen.ids))
    assert not re.search(r"url\(|@import|@font-face|src=", text)
    assert "default-src 'none'" in text


def test_an_older_report_is_replaced_and_equal_input_gives_equal_bytes(result):
    first = write_report(result).read_bytes()
    assert write_report(copy.deepcopy(result)).read_bytes() == first


def test_summary_says_what_was_found_in_one_sentence(result):
    # mean of 0.72 - 0.05 i + 0.096, and of 0.70 - 0.05 i, weighted 2000, 1600, 1200, 800
    shift = 0.05 * (1600 + 2 * 1200 + 3 * 800) / 5600
    average, control = f"{100 * (0.816 - shift):.1f} %", f"{100 * (0.7 - shift):.1f} %"
    assert run_tables.summary(result) == (
        f"After 8 rounds of dualadapt on digits, mean accuracy (average) over 4 clients is {average}, "
        f"11.6 points above training on the source alone ({control})."
    )


@pytest.mark.parametrize(
    ("difference", "words"), [(0.0126, "1.3 points above"), (-0.01, "1.0 point below"), (0.0004, "level with")]
)
def test_differences_in_words(difference, words):
    assert run_tables._points(difference).replace("1.0 points", "1.0 point") == words


def test_results_table_has_a_row_for_each_client_and_the_mean(seen):
    table = seen.tables[0]
    assert table[0] == ["client", "source only", "global", "local", "average", "test examples"]
    assert table[1] == ["usps", "70.0 %", "78.0 %", "75.0 %", "81.6 %", "2\u202f000"]
    assert [row[0] for row in table] == ["client", "usps", "mnist_m", "optdigits", "synthdigits", "mean"]
    assert "The mean counts each client once." in "".join(seen.text)


def test_best_accuracy_of_a_row_is_bold_ties_included():
    cells = run_tables._cells(
        TABLE,
        ["accuracy_global", "accuracy_local", "accuracy_average", "loss"],
        {"accuracy_global": 0.80001, "accuracy_local": 0.8, "accuracy_average": math.nan, "loss": 3.0},
    )
    assert [cell.best for cell in cells] == [True, True, False, False]
    assert [cell.best for cell in run_tables._cells(TABLE, ["accuracy"], {"accuracy": 0.8})] == [False]


def test_curves_have_a_panel_for_the_mean_and_each_client_and_one_legend(result, seen):
    keys, drawings = charts.primary_figures(result)
    assert [key.label for key in keys] == ["source only", "global", "local", "average"]
    assert [drawing.title for drawing in drawings] == ["mean", "usps", "mnist_m", "optdigits", "synthdigits"]
    assert "average 73.2 % in round 1, 81.6 % in round 8" in drawings[1].svg  # for those who cannot see it
    assert len(seen.labels) == seen.tags.count("figure") == 5 + 1 + 2 + 1
    assert all(seen.labels)


def test_figures_leave_colors_and_letters_to_the_page(result):
    drawings = charts.primary_figures(result)[1]
    for drawing in drawings:
        assert "var(--c4)" in drawing.svg
        assert not re.search(r"#[0-9a-f]{6}|font-family|<style|width=\"\d+pt", drawing.svg)


def test_a_missing_round_is_a_gap_and_is_said(tmp_path):
    rounds = dualadapt_rounds(3)
    for at in (1, 3):
        del rounds[at]["clients"]["optdigits"]
    rounds[3]["failures"] = [{"client": "optdigits", "partition": 2, "reason": "RuntimeError: <loss> is nan"}]
    text = render(make(tmp_path, rounds))
    seen = Page(text)
    assert seen.tables[0][3] == ["optdigits", "-", "-", "-", "-", ""]
    assert "No result in round 3 from optdigits." in "".join(seen.text)
    assert "RuntimeError: <loss> is nan" in "".join(seen.text)
    assert not [words for words in seen.labels if "nan" in words]


def test_the_mean_does_not_jump_where_a_client_is_lost(tmp_path):
    """Its line is broken there, with an open dot for the mean over the others; a client that is left out has a gap."""
    rounds = dualadapt_rounds(4)
    whole = make(tmp_path, dualadapt_rounds(4))
    del rounds[2]["clients"]["optdigits"]
    found = make(tmp_path, rounds)
    said = "An open dot is a mean without a client that was not tested in some rounds (optdigits)"
    assert said in "".join(Page(render(found)).text) and said not in render(whole)
    assert said in render_excerpt(found)

    def lines(result):
        return re.findall(r'<path d="([^"]*)"[^>]*fill: none[^>]*var\(--c2\)', charts.primary_figures(result)[1][0].svg)

    assert [line.count("L") for line in lines(whole) if "L" in line] == [4]
    assert [line.count("L") for line in lines(found) if "L" in line] == [1, 1]
    sampled = make(tmp_path, rounds, {**preset_config(rounds=4), "fraction_evaluate": 0.5})
    assert charts.sometimes_missing(sampled) == []  # other clients each time, as was asked for
    assert [line.count("L") for line in lines(sampled) if "L" in line] == [4]


def test_a_late_joiner_s_absence_is_no_jump_either(tmp_path):
    rounds = [record(k, {name: {"accuracy": 0.5} for name in "abc"[: 2 + (k > 1)]}) for k in range(4)]
    assert charts.sometimes_missing(make(tmp_path, rounds)) == ["c"]
    rounds = [record(k, {name: {"accuracy": 0.5} for name in "abc"}) for k in range(4)]
    rounds[3]["clients"] = {name: {**of, "accuracy_personal": 0.9} for name, of in rounds[3]["clients"].items()}
    assert charts.sometimes_missing(make(tmp_path, rounds)) == []  # what all of them report at the end only


def test_no_failures_no_section(seen):
    assert "Failures of clients" not in seen.text


def test_names_and_reasons_are_harmless(tmp_path):
    evil = '<script>alert("x")</script>"&@$x$'
    rounds = [record(k, {evil: {"accuracy": 0.5, evil: 1.0}, "b": {"accuracy": 0.6, evil: 2.0}}) for k in range(2)]
    rounds[1]["failures"] = [{"client": evil, "partition": 0, "reason": evil}]
    rounds[1]["seconds"] = {evil: 1.0}
    config = {**preset_config(), "workload": evil, "strategy": evil, "name": evil}
    seen = Page(render(make(tmp_path / "<b>", rounds, config, git_commit=evil, error=evil, status=evil, device=evil)))
    assert "script" not in seen.tags
    assert evil in seen.tables[0][1]
    assert any(evil in words for words in seen.labels)


def test_a_single_accuracy_has_one_color_and_no_bold(tmp_path):
    rounds = [record(k, {"a": {"accuracy": 0.5 + 0.1 * k}, "b": {"accuracy": 0.6}}) for k in range(3)]
    result = make(tmp_path, rounds)
    assert run_tables.summary(result).endswith(
        "mean accuracy over 2 clients is 65.0 %; it was 55.0 % before the first round."
    )
    seen = Page(render(result))
    assert seen.bold == []
    assert seen.tables[0][0] == ["client", "accuracy"]


def test_other_numbers_have_a_figure_each(tmp_path):
    rounds = [record(k, {"a": {"psnr": 20.0 + k, "loss": 1.0}, "b": {"psnr": 22.0}}) for k in range(3)]
    result = make(tmp_path, rounds)
    assert "mean psnr" in run_tables.summary(result)
    assert charts.primary_figures(result) == ([], [])
    titles = [drawing.title for drawing in charts.other_figures(result)[0]]
    assert titles == ["psnr, on the clients", "loss ↓, on the clients", "loss ↓, on the server"]
    assert "Accuracy by round" not in render(result)
    tables = Page(render(result)).tables
    assert tables[0][2] == ["b", "22"] and tables[1][2] == ["b", "-"]  # losses have a table of their own


def test_what_one_round_alone_has_is_a_value_in_a_table_behind_the_figures(tmp_path):
    rounds = dualadapt_rounds(2)
    for client, values in rounds[-1]["clients"].items():
        values["kept"] = float(client != "usps")
    rounds[-1]["mean"]["kept"] = 0.75
    rounds[0]["server"]["late"] = 3.0
    result = make(tmp_path, rounds)
    figures, once = charts.other_figures(result)
    assert [drawing.title for drawing in figures] == ["loss ↓, on the server"]
    assert [(row.head, *(cell.text for cell in row.cells)) for row in once] == [
        ("kept, on the clients", "0.75", "2"),
        ("late, on the server", "3", "0"),
    ]
    page = render(result)
    assert page.index("loss ↓, on the server") < page.index("Measured in one round")
    only = render(make(tmp_path, dualadapt_rounds(0)))
    assert "Measured in one round only" in only and "Other measures by round" not in only


@pytest.mark.parametrize(
    ("manifest", "shown"),
    [
        ({"engine": "local", "engine_chosen": "inprocess"}, "local (inprocess)"),
        ({"engine": "ray"}, "ray"),
        ({"engine": ""}, None),
    ],
)
def test_the_engine_has_the_name_that_it_has_in_the_options(tmp_path, manifest, shown):
    result = make(tmp_path, dualadapt_rounds(1), **manifest)
    assert run_tables.facts(result).get("engine") == shown


def test_a_table_wider_than_a_phone_says_so(tmp_path):
    page = render(make(tmp_path, dualadapt_rounds(1)))
    assert "4 columns: swipe sideways" in page and "2 columns: swipe" not in page


def test_only_round_zero(tmp_path):
    result = make(tmp_path, dualadapt_rounds(0), status="interrupted")
    text = "".join(Page(render(result)).text)
    assert "Before the first round of dualadapt on digits" in text
    assert "This run is not finished" in text
    assert "Training only, round by round" not in text


def test_a_run_of_one_client_and_of_none(tmp_path):
    one = make(tmp_path, [record(k, {"a": {"accuracy": 0.5}}) for k in range(2)])
    assert "accuracy of the one client is 50.0 %" in run_tables.summary(one)
    assert [drawing.title for drawing in charts.primary_figures(one)[1]] == ["a"]
    Page(render(make(tmp_path, [record(0, {}, seconds={}, server={})])))


def test_few_clients_have_a_panel_each_and_many_have_quantiles(tmp_path):
    few = make(tmp_path, [record(k, {f"shard-{i}": {"accuracy": 0.5} for i in range(24)}) for k in range(3)])
    assert len(charts.primary_figures(few)[1]) == 25
    many = make(tmp_path, [record(k, {f"shard-{i}": {"accuracy": i / 24} for i in range(25)}) for k in range(3)])
    titles = [drawing.title for drawing in charts.primary_figures(many)[1]]
    assert titles == ["mean over clients", "median client; 80 % of clients in the band", "worst tenth of clients"]
    assert "50.0 % in round 0" in charts.primary_figures(many)[1][1].svg


def test_a_page_of_a_thousand_clients_is_bounded_and_counts_those_that_were_tested(tmp_path):
    result = many_clients.write_run(tmp_path, failures=30)
    text = render(result)
    assert len(text) < 200_000  # 30 kB of them are a CSV file of all clients
    seen = Page(text)
    said = "".join(seen.text)
    assert "mean accuracy over 1,000 clients" in said
    assert "The 1000 clients that were tested after round 10" in said and "The 100 worst clients" in said
    table, worst = seen.tables[:2]
    values = sorted(of["accuracy"] for of in result.final().values())
    assert table[1][:2] == ["worst tenth", f"{sum(values[:100]):.1f} %"]
    assert [row[0] for row in table[2:]] == ["minimum", "10 %", "25 %", "median", "75 %", "90 %", "maximum", "mean"]
    assert worst[1][1] == f"{100 * values[0]:.1f} %" and len(worst) == 101
    assert f"{11 * 30} failures of clients" in said and f"In metrics.jsonl: {11 * 30 - 100} more." in said
    assert "No result in round" not in said  # those that were not drawn are not missing


def test_a_page_of_sampled_clients_shows_the_rounds_that_had_a_test(tmp_path):
    result = many_clients.write_run(tmp_path, tested=50, global_test=True)
    said = "".join(Page(render(result)).text)
    assert "the global model has accuracy 90.0 %" in said and "over 50 clients is" in said
    titles = [drawing.title for drawing in charts.primary_figures(result)[1]]
    assert titles[:2] == ["global model", "mean over clients"]
    assert "accuracy 10.0 % in round 0, 90.0 % in round 10" in charts.primary_figures(result)[1][0].svg
    rows = {row.head: [cell.text for cell in row.cells] for row in cost_charts.traffic_table(result)[0]}
    took_part = {name for one in result.rounds for name in one["bytes"]}
    assert rows[f"all {len(took_part)} that took part"][0] == "500.0 kB"


def test_a_run_whose_clients_are_never_tested_is_judged_by_the_global_model(tmp_path):
    result = many_clients.write_run(tmp_path, tested=0, global_test=True)
    seen = Page(render(result))
    assert "the global model has accuracy 90.0 %." in "".join(seen.text)
    assert seen.tables[0] == [["", "accuracy", "loss ↓"], ["global model", "90.0 %", "1"]]
    assert [drawing.title for drawing in charts.primary_figures(result)[1]] == ["global model"]
    assert [drawing.title for drawing in charts.other_figures(result)[0]] == ["loss ↓, of the global model"]


def test_a_line_goes_on_over_rounds_without_a_test_and_stops_where_others_were_measured():
    nan = math.nan

    def lines(*curves):
        drawn = panel("p", range(5), [Curve("c", 2, c) for c in curves], within=(0, 1), percent=True, alt="").svg
        return re.findall(r'<path d="([^"]*)"[^>]*fill: none[^>]*var\(--c2\)', drawn)

    (sparse,) = lines([0.1, nan, 0.3, nan, 0.5])
    assert (sparse.count("M"), sparse.count("L")) == (1, 2)
    interrupted, whole = lines([0.1, 0.2, nan, 0.4, 0.5], [0.9] * 5)
    assert (interrupted.count("M"), whole.count("M")) == (2, 1)


def test_what_is_not_known_is_left_out(tmp_path):
    result = Result(tmp_path, dualadapt_rounds(1), {}, {})
    text = "".join(Page(render(result)).text)
    assert "git commit" not in text and "weights" not in text
    assert "From its preset" not in text


def test_options_versions_commit_and_hash_are_there(result, seen):
    text = "".join(seen.text)
    for wanted in (
        "dualadapt.client_discrepancy",
        "2.14.1",
        "98ae502",
        "9f27" * 16,
        "inprocess",
        elapsed(sum(result.seconds().values())),
    ):
        assert wanted in text
    assert f"All {len(result.config)} options" in text


def test_time_by_phase_adds_up(result):
    rows, drawing = cost_charts.time_table(result)
    assert [(row.head, row.cells[0].text) for row in rows] == [
        ("pre-training on the source", "10 s"),
        ("clients test", "4.5 s"),
        ("clients train", "12 s"),
        ("all", "26 s"),
    ]
    assert drawing.title == "Seconds in each round"


def test_traffic_by_client_adds_up(result):
    rows, drawings = cost_charts.traffic_table(result)
    assert [cell.text for cell in rows[0].cells] == ["16.0 kB", "8.0 kB", "4.5 kB", "180 B"]
    assert [cell.text for cell in rows[-1].cells] == ["64.0 kB", "32.0 kB", "18.0 kB", "720 B"]
    assert [drawing.title for drawing in drawings] == [
        "kB to the clients in each round",
        "kB from the clients in each round",
    ]


def test_the_command_from_the_preset_gives_the_same_options(tmp_path):
    overrides = {"rounds": "3", "digits.augment": "false", "digits.targets": "usps, mnist_m", "seed": 7}
    config = preset_config(**overrides)
    result = make(tmp_path, dualadapt_rounds(3), config)
    words = shlex.split(commands.repeat_from_preset(result))
    assert words[:3] == ["fedlab", "run", "dualadapt-digits"] and words[-2:] == ["--seed", "7"]
    assert preset_config(**parse_overrides(words[3:-2]), seed=7) == config


def test_the_other_commands_name_the_directory_as_a_shell_wants_it(tmp_path):
    directory = tmp_path / "my runs"
    directory.mkdir()
    result = make(directory, dualadapt_rounds(1))
    (directory / "config.toml").write_text(to_toml(result.config))
    assert shlex.split(commands.repeat_from_config(result)) == ["fedlab", "run", str(directory / "config.toml")]
    assert shlex.split(commands.resume(result)) == ["fedlab", "resume", str(directory)]


def test_the_command_of_a_served_run_serves_and_that_of_a_plug_in_says_what_it_needs(tmp_path):
    served = {**load_config("dualadapt-digits", {"engine": "grpc"}).options(), "comm.connect_timeout": 600.0}
    result = make(tmp_path, dualadapt_rounds(1), served | {"grpc.certificates": "/srv/certs"})
    assert commands.repeat_from_preset(result) == "fedlab serve dualadapt-digits grpc.certificates=/srv/certs --seed 0"
    assert commands.repeat_from_config(result).startswith("fedlab serve ")
    assert "From its preset, for the same clients to join:" in render(result)
    mine = make(tmp_path, dualadapt_rounds(1), {**preset_config(), "workload": "own.task:SPEC", "strategy": "my:SPEC"})
    assert commands.condition(mine) == "where Python finds own.task and my"
    assert "From its preset, anywhere:" in render(make(tmp_path, dualadapt_rounds(1)))


def test_a_command_breaks_between_its_words_and_is_copied_whole(tmp_path):
    page = render(make(tmp_path, dualadapt_rounds(1), preset_config(rounds=1)))
    assert "<span>rounds=1</span> <span>--seed</span> <span>0</span>" in page
    assert "fedlab run dualadapt-digits rounds=1 --seed 0" in "".join(Page(page).text)


def test_the_command_of_a_run_with_another_name_than_its_preset(tmp_path):
    result = make(tmp_path, dualadapt_rounds(1), {**preset_config(rounds=1, seed=3), "name": "2feaf39d325e"})
    assert commands.repeat_from_preset(result) == ""
    assert commands.repeat_from_preset(result, "dualadapt-digits") == "fedlab run dualadapt-digits rounds=1 --seed 3"
    mine = tmp_path / "my own.toml"
    mine.write_text(to_toml({"workload": "digits", "strategy": "dualadapt", "rounds": 1}))
    words = shlex.split(commands.repeat_from_preset(result, str(mine)))
    assert words[:3] == ["fedlab", "run", str(mine)] and "rounds=1" not in words
    assert "dualadapt.client_adapt=source_free" in words and not any(word.startswith("source_free.") for word in words)


def test_no_command_from_a_preset_that_is_not_ours(tmp_path):
    mine = {**preset_config(), "name": "mine"}
    assert commands.repeat_from_preset(make(tmp_path, dualadapt_rounds(1), mine)) == ""
    newer = {**preset_config(), "digits.unheard_of": 1}
    assert commands.repeat_from_preset(make(tmp_path, dualadapt_rounds(1), newer)) == ""


def test_the_usual_accuracies_keep_their_colors_and_no_other_takes_them():
    given = slots(["accuracy_source_only", "accuracy_average", "accuracy_last", "accuracy_oracle"], TABLE)
    assert (given["accuracy_source_only"], given["accuracy_average"]) == (REFERENCE, 4)
    assert len(set(given.values())) == 4
    assert set(slots([f"accuracy_{i}" for i in range(20)], TABLE).values()) == set(range(2, SLOTS + 1))


def test_panels_have_one_span_each_around_its_own_values():
    panels = [[Curve("a", 1, [0.5, 0.7])], [Curve("a", 1, [0.95, math.nan, 1.0])], [Curve("a", 1, [math.nan])]]
    ranges = limits(panels, (0.0, 1.0))
    assert [high - low for low, high in ranges] == pytest.approx([0.24] * 3)
    assert ranges[0] == pytest.approx((0.48, 0.72))
    assert ranges[1][0] <= 0.95 and 1.0 <= ranges[1][1] < 1.02
    assert limits([[Curve("a", 1, [0.0])]], (-math.inf, math.inf)) == [(-0.5, 0.5)]


def test_a_run_that_reports_another_share_is_read_by_it(tmp_path):
    def at(k):
        return {"miou_source_only": 0.3, "miou_average": 0.3 + 0.1 * k, "loss": 1.0}

    result = make(tmp_path, [record(k, {"a": at(k), "b": at(k)}) for k in range(2)])
    assert run_tables.summary(result).endswith(
        "mean IoU (average) over 2 clients is 40.0 %, 10.0 points above training on the source alone (30.0 %)."
    )
    keys, _ = charts.primary_figures(result)
    assert [key.label for key in keys] == ["source only", "average"] and keys[1].slot == 4
    assert next(drawing.title for drawing in charts.other_figures(result)[0]) == "loss ↓, on the clients"
    text = render(result)
    assert "Mean IoU by round" in text and "<b>40.0 %</b>" in text


def test_a_declared_metric_has_its_title_unit_and_direction(tmp_path):
    table = MetricTable((Metric("energy", "energy used", "kcal", higher_is_better=False),))
    rounds = [record(k, {"a": {"energy": 3.0 - k}, "b": {"energy": 5.0}}) for k in range(2)]
    result = make(tmp_path, rounds, **table.to_manifest())
    assert run_tables.summary(result).endswith(
        "mean energy used over 2 clients is 3.5 kcal; it was 4 kcal before the first round."
    )
    seen = Page(render(result))
    assert seen.tables[0][:2] == [["client", "energy used ↓"], ["a", "2 kcal"]]
    assert charts.other_figures(result)[0][0].title == "energy used ↓, on the clients"
