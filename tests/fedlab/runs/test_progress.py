"""Three displays on one script of events, and the thread that follows a file."""

from __future__ import annotations

import io
import json
import threading
import time

import pytest
from rich.console import Console

from fedlab.metrics import FRACTION, Metric
from fedlab.registry import find
from fedlab.runs.directory import RunDirectory
from fedlab.runs.formatting import elapsed
from fedlab.runs.metrics import MetricTable
from fedlab.runs.progress import JsonProgress, PlainProgress, RichProgress, follow, watch_live

TABLE = MetricTable.declared(
    find("strategy", "dualadapt").spec, find("workload", "digits").spec, find("workload", "molecules").spec
)
ROUND = {
    "event": "round",
    "round": 1,
    "rounds": 2,
    "mean": {"accuracy_global": 0.5, "accuracy_average": 0.625},
    "clients": {
        "usps": {"accuracy_global": 0.25, "accuracy_average": 0.375, "loss": 9.0},
        "svhn": {"accuracy_global": 0.75, "loss": 9.0},  # its training failed: it has no local head
    },
}
FAILED = {
    "event": "client_failed",
    "round": 1,
    "phase": "clients",
    "partition": 1,
    "client": "svhn",
    "reason": "Traceback (most recent call last):\n  File ...\nOSError: the disk is gone\n",
}
SCRIPT = [
    {"event": "connecting", "clients": 2},
    {"event": "phase", "round": 0, "rounds": 2, "phase": "pretrain"},
    {"event": "progress", "round": 0, "phase": "pretrain", "done": 3, "total": 8},
    {"event": "resumed", "round": 0},
    {"event": "phase", "round": 1, "rounds": 2, "phase": "clients", "clients": 2},
    {"event": "client", "round": 1, "client": "usps", "metrics": {"accuracy_global": 0.25, "loss": 9.0}},
    FAILED,
    ROUND,
    {"event": "finished", "weights_sha256": "abc"},
    {"event": "an event of a later version"},
]


def send(listener, *events):
    for event in events:
        listener.on_event(event)


class Kept:
    """A listener that keeps the events."""

    def __init__(self):
        self.events, self.arrived = [], threading.Condition()

    def on_event(self, event):
        with self.arrived:
            self.events.append(event)
            self.arrived.notify_all()

    def wait_for(self, count):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.events) >= count, timeout=10), self.events


# --- lines ---


def test_lines_tell_a_log_what_a_reader_wants_to_know():
    lines = []
    send(PlainProgress(lines.append, TABLE), *SCRIPT)
    assert lines == [
        "pre-training on the source",
        "resumed after round 0",
        "client svhn (partition 1) failed in round 1, clients train: OSError: the disk is gone",
        "round 1/2  global 50.0 %  average 62.5 %  | accuracy (average): usps 37.5 %",
    ]


def test_a_mean_that_lacks_clients_says_whom():
    """Else it seems to rise, where a weak client has gone."""
    whole, lines = next(event for event in SCRIPT if event["event"] == "round"), []
    untested = {**whole, "clients": {}, "mean": {}, "without": ["svhn"]}
    send(PlainProgress(lines.append, TABLE), {**whole, "without": ["svhn", "usps"]}, {**whole, "without": []}, untested)
    assert "(without svhn, usps)" in lines[0] and "without" not in lines[1] + lines[2]


def test_json_lines_are_the_events():
    lines = []
    send(JsonProgress(lines.append), *SCRIPT)
    assert [json.loads(line) for line in lines] == SCRIPT
    assert all("\n" not in line for line in lines)


# --- the live picture ---


def record():
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None, record=True)


def picture(live):
    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(live._render())
    return captured.get()


def test_the_live_picture_shows_round_phase_progress_and_clients_as_they_come():
    live = RichProgress(record(), TABLE)
    assert "connecting" in picture(live)
    send(live, *SCRIPT[:3])
    assert "round 0 of 2" in picture(live)
    assert "pre-training on the source" in picture(live)
    assert "3/8" in picture(live)
    send(live, *SCRIPT[3:6])
    shown = picture(live)
    assert "round 1 of 2" in shown
    assert "clients train" in shown
    assert "1/2" in shown  # one client of two has answered
    assert "3/8" not in shown  # the phase before is over
    assert "usps" in shown and "25.0 %" in shown and "global" in shown
    assert "loss" not in shown  # accuracies only


def test_the_live_picture_leaves_a_line_for_each_round_and_failure():
    console = record()
    with RichProgress(console, TABLE) as live:
        send(live, *SCRIPT)
    text = console.export_text()
    assert "resumed after round 0" in text
    assert "client svhn (partition 1) failed in round 1, clients train: OSError: the disk is gone" in text
    assert "round 1/2  global 50.0 %  average 62.5 %" in text


def adapting():
    events = [
        {"event": "phase", "round": 2, "rounds": 2, "phase": "adapt", "clients": 2},
        {"event": "progress", "round": 2, "phase": "adapt", "client": "usps", "done": 120, "total": 480},
        {"event": "client", "round": 2, "client": "usps", "metrics": {}},
    ]
    return find("strategy", "source_free").spec.phases, events


def test_a_phase_with_a_note_says_it_in_a_log_and_above_the_live_picture():
    phases, events = adapting()
    table, lines, console = MetricTable((), phases), [], record()
    send(PlainProgress(lines.append, table), *events)
    assert len(lines) == 1 and "each client now also trains features of its own" in lines[0]
    with RichProgress(console, table) as live:
        send(live, *events)
    assert " ".join(console.export_text().split()).count(lines[0]) == 1


def test_a_phase_without_a_note_leaves_no_line_above_the_live_picture(monkeypatch):
    live, lines = RichProgress(record(), TABLE), []
    monkeypatch.setattr(live, "write", lines.append)
    send(live, *({"event": "phase", "round": 1, "rounds": 2, "phase": name} for name in ("clients", "evaluate")))
    assert lines == []


def test_the_steps_of_a_client_are_shown_while_it_trains_and_leave_the_count_of_clients_alone():
    phases, (phase, step, answered) = adapting()
    live = RichProgress(record(), MetricTable((), phases))
    send(live, phase, step)
    assert "clients adapt" in picture(live) and "0/2" in picture(live)
    assert "usps, step" in picture(live) and "120/480" in picture(live)
    live.on_event(answered)
    assert "1/2" in picture(live) and "120/480" not in picture(live)
    send(live, {**step, "client": "[/b]", "done": 1})
    assert "[/b], step" in picture(live) and "1/480" in picture(live)
    live.on_event({**phase, "phase": "evaluate"})
    assert "1/480" not in picture(live)


def test_what_clients_say_is_never_read_as_markup():
    console = record()
    with RichProgress(console, TABLE) as live:
        live.on_event({**FAILED, "reason": "KeyError: [red]layer[0]"})
    assert "KeyError: [red]layer[0]" in console.export_text()


def test_names_of_clients_and_metrics_are_never_read_as_markup():
    """Rich raises on a closing tag that nothing opens."""
    name, evil = "accuracy_[/b]", "svhn[/b]"
    table = MetricTable((Metric(name, unit=FRACTION, higher_is_better=True),))
    metrics = {name: 0.5}
    event = {"event": "round", "round": 1, "rounds": 2, "mean": metrics, "clients": {evil: metrics}}
    console = record()
    with RichProgress(console, table) as live:
        send(live, {"event": "phase", "round": 1, "rounds": 2, "phase": "[/b]"})
        send(live, {"event": "client", "round": 1, "client": evil, "metrics": metrics}, event)
        shown = picture(live)
    assert evil in shown and "accuracy [/b]" in shown and "  [/b]" in shown
    assert "accuracy [/b] 50.0 %" in console.export_text()


def test_a_declared_metric_is_shown_with_title_unit_and_direction():
    table = MetricTable((Metric("energy", "energy used", "kcal", higher_is_better=False),))
    lines = []
    event = {"event": "round", "round": 1, "rounds": 2, "mean": {"energy": 2.5}, "clients": {"near": {"energy": 2.5}}}
    PlainProgress(lines.append, table).on_event(event)
    assert lines == ["round 1/2  energy used ↓ 2.5 kcal  | energy used: near 2.5 kcal"]


def test_a_round_without_a_test_says_so():
    lines = []
    PlainProgress(lines.append, TABLE).on_event({"event": "round", "round": 3, "rounds": 9, "mean": {}, "clients": {}})
    assert lines == ["round 3/9  not tested"]


def test_what_a_model_draws_is_told_with_its_score():
    event = {"event": "round", "round": 3, "rounds": 9, "mean": {"loss": 2.0}, "clients": {"near": {"loss": 2.0}}}
    lines = []
    PlainProgress(lines.append, TABLE).on_event(
        {**event, "score": {"validity": 0.5, "frechet": 3.0, "wasserstein_qed": 0.1}}
    )
    PlainProgress(lines.append, TABLE).on_event({**event, "score": {}})
    assert lines == [
        "round 3/9  validity 50.0 %  Fréchet distance ↓ 3  | loss: near 2",
        "round 3/9  loss ↓ 2  | loss: near 2",
    ]


def test_a_phase_that_asks_nobody_is_not_shown():
    live = RichProgress(record(), TABLE)
    live.on_event({"event": "phase", "round": 1, "rounds": 2, "phase": "clients", "clients": 0})
    assert "clients train" not in picture(live)


def test_a_metric_that_a_client_does_not_have_is_a_blank_never_a_number():
    live = RichProgress(record(), TABLE)
    for name, metrics in ROUND["clients"].items():
        live.on_event({"event": "client", "round": 1, "client": name, "metrics": metrics})
    (row,) = [line for line in picture(live).splitlines() if "svhn" in line]
    assert row.split() == ["svhn", "75.0", "%"]


# --- following a file ---


def write(path, text):
    with (path / "events.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(text)


def test_follow_tells_whole_lines_only_even_when_one_comes_in_pieces(tmp_path):
    kept = Kept()
    with follow(tmp_path, kept):  # there is no file yet
        write(tmp_path, '{"event": "a"}\n{"eve')
        kept.wait_for(1)
        time.sleep(0.25)  # some looks at half a line
        assert kept.events == [{"event": "a"}]
        write(tmp_path, 'nt": "b"}\n{"event": "c"}\n')
        kept.wait_for(3)
    assert [event["event"] for event in kept.events] == ["a", "b", "c"]


def test_follow_tells_what_was_written_just_before_the_end(tmp_path):
    kept = Kept()
    with follow(tmp_path, kept):
        for number in range(50):
            write(tmp_path, json.dumps({"event": number}) + "\n")
    assert [event["event"] for event in kept.events] == list(range(50))


def test_a_resumed_run_is_followed_from_where_its_torn_log_is_mended(tmp_path):
    (tmp_path / "config.toml").touch()
    write(tmp_path, '{"event": "of the run before"}\n{"torn by a kil')
    kept = Kept()
    with follow(tmp_path, kept), RunDirectory.open(tmp_path) as run:
        run.emit("new")
    assert [event["event"] for event in kept.events] == ["new"]


def test_a_line_that_is_no_json_does_not_end_the_following(tmp_path):
    kept = Kept()
    with follow(tmp_path, kept):
        write(tmp_path, 'what is this\n{"event": "new"}\n')
    assert kept.events == [{"event": "new"}]


def test_following_stops_when_the_run_raises(tmp_path):
    kept, before = Kept(), threading.active_count()

    def body():
        with follow(tmp_path, kept):
            write(tmp_path, '{"event": "last"}\n')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        body()
    assert kept.events == [{"event": "last"}]
    assert threading.active_count() == before


def test_a_live_watch_of_a_file_with_the_names_of_its_manifest(tmp_path):
    (tmp_path / "config.toml").touch()
    RunDirectory.open(tmp_path).update_manifest(**TABLE.to_manifest())
    console = record()
    with watch_live(tmp_path, console):
        write(tmp_path, "".join(json.dumps(event) + "\n" for event in SCRIPT))
    assert "round 1/2  global 50.0 %" in console.export_text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (59.7, "1 min 0 s"),
        (75.2, "1 min 15 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (10_799, "3 h 0 min"),
    ],
)
def test_seconds_for_people(seconds, text):
    assert elapsed(seconds) == text


MANY = {f"shard-{number}": {"accuracy_average": number / 100} for number in range(101)}


def test_a_line_has_quantiles_in_place_of_a_hundred_clients():
    lines = []
    send(
        PlainProgress(lines.append, TABLE),
        {**ROUND, "clients": MANY},
        {"event": "connected", "connected": 3, "clients": 9, "names": list(MANY)},
    )
    assert "101 clients  worst tenth 5.0 %  minimum 0.0 %" in lines[0] and "median 50.0 %" in lines[0]
    assert "shard-3" not in lines[0] and len(lines[0]) < 250
    assert lines[1] == "3 of 9 connected: shard-0, shard-1, shard-2, ..., shard-100"


def test_the_live_picture_of_many_clients_is_a_table_of_quantiles():
    console = Console(file=io.StringIO(), width=100)
    live = RichProgress(console, TABLE)
    send(live, *({"event": "client", "round": 1, "client": name, "metrics": of} for name, of in MANY.items()))
    console.print(live._render())
    shown = console.file.getvalue()
    assert "101 clients" in shown and "worst tenth" in shown and "shard-3" not in shown
    assert len(shown.splitlines()) < 15


def test_a_narrow_terminal_shows_the_metrics_that_a_run_is_judged_by_and_no_head_is_cut():
    variants = [Metric(f"*_{end}", order=place) for place, end in enumerate(("global", "local", "last", "personal"))]
    table = MetricTable((Metric("accuracy", unit=FRACTION, higher_is_better=True), *variants, Metric("entropy")))
    metrics = {f"accuracy_{end}": 0.5 for end in ("global", "local", "last", "personal")} | {"entropy": 0.25}
    live = RichProgress(Console(width=60, color_system=None), table)
    live.clients = {"synthdigits": metrics}
    with live.console.capture() as captured:
        live.console.print(live._render())
    head, row = captured.get().splitlines()[-2:]
    assert head.split() == ["client", "global", "local", "last", "personal"]
    assert row.split() == ["synthdigits", *["50.0", "%"] * 4]
    assert live._fitting(list(metrics), 30)[-1] == "accuracy_personal"  # of too many, the last of them


def test_what_clients_did_whose_value_is_zero_is_a_sentence():
    table = MetricTable((Metric("kept", when_zero="threw it away"), Metric("other")))
    clients = {"a": {"kept": 0.0, "other": 0.0}, "b": {"kept": 1.0}, "c": {"other": 0.0}, "d": {"kept": 0.0}}
    assert table.zeros(clients) == ["2 of 3 clients threw it away: a, d"]
    assert table.zeros({"b": {"kept": 1.0}}) == []
