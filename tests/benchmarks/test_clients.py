"""The benchmark of many clients: its rows do the same work, and its figures are read back."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from benchmarks import clients
from benchmarks.client_systems import ROWS, Work, cohort_of, plain_loop, vmap_by_hand
from benchmarks.client_workload import EXAMPLES, NETWORKS, ManyClients
from benchmarks.clients import Measured, empty_rounds, family, host, proportional_memory, rates
from configs import make
from fedlab.testing import check_workload

WORK = Work("cnn", 7, 3, 2)


def test_networks_are_those_of_the_published_figures():
    sizes = {name: sum(weight.numel() for weight in of().parameters()) for name, of in NETWORKS.items()}
    assert sizes == {"mlp": 197_322, "cnn": 25_682, "empty": 2, "tiny": 86}


def test_loop_and_vmap_train_the_same_model():
    torch.manual_seed(0)
    one = plain_loop(WORK)
    torch.manual_seed(0)
    other = vmap_by_hand(WORK, at_once=2)
    assert len(one.seconds) == len(other.seconds) == 2 and one.first > 0
    for name, value in one.weights.items():
        torch.testing.assert_close(value, other.weights[name], rtol=1e-3, atol=1e-5)


def test_a_cohort_is_part_of_the_registered_clients_and_another_one_each_round():
    first, second = cohort_of(WORK, 1), cohort_of(WORK, 2)
    assert len(set(first)) == 3 and max(first) < 7 and first != second


def test_clients_have_fifty_images_each():
    workload = make(ManyClients, num_clients=300)
    assert len(workload.clients) == 300
    assert {len(workload.data(number, "train")) for number in (0, 99, 100, 299)} == {EXAMPLES}
    check_workload(make(ManyClients, num_clients=2))


def test_memory_is_that_of_a_process_and_those_below_it():
    assert os.getpid() in family(os.getppid())
    assert proportional_memory(os.getpid()) > 10e6
    assert proportional_memory(2**30) == 0.0


def test_a_row_that_cannot_be_measured_says_what_it_needs():
    reason = ROWS["pfl"].missing()
    assert reason in ("", "needs `pip install pfl`")
    measured = [Measured("pfl", Work("mlp", 1000, 50, 4), error="needs `pip install pfl`")]
    assert next(iter(rates(measured, ["mlp"], [50]).columns[1].cells)) == "needs `pip install pfl`"


def test_tables_show_the_fastest_round_after_the_first_and_goals():
    measured = [Measured("loop", Work("mlp", 1000, 50, 3), (1.0, 0.25, 0.5), 1.5, 0.5)]
    assert list(rates(measured, ["mlp"], [50]).columns[1].cells) == ["200", "390"]
    found = [Measured("inprocess", work, (1.0, 0.004), 1.0, 0.3) for work in clients.EMPTY]
    assert list(empty_rounds(found).columns[2].cells) == ["4.0", "20"]


@pytest.mark.engine
def test_the_command_measures_the_rows_that_are_named(tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures.json"
    asked = [
        "--rows",
        "loop",
        "--networks",
        "cnn",
        "--cohorts",
        "2",
        "--rounds",
        "2",
        "--no-empty",
        "--json",
        str(path),
    ]
    monkeypatch.setattr(sys, "argv", ["clients", *asked])
    clients.main()
    (figure,) = json.loads(path.read_text())["figures"]
    assert figure["row"] == "loop" and figure["clients_per_second"] > 0 and figure["start"] > 0
    assert "plain torch loop" in capsys.readouterr().out


def test_the_host_s_rows_are_those_that_are_named(monkeypatch, capsys):
    measured = []

    def measure(row, work):
        measured.append(row)
        return Measured(row, work, (1.0,), cpu=[1.0, 1.0])

    monkeypatch.setattr(clients, "measure", measure)
    for given, rows in (
        (["--rows", "inprocess_vectorized"], ["inprocess_vectorized"]),
        ([], ["inprocess", "inprocess_vectorized", "inprocess_at_once"]),
    ):
        measured.clear()
        monkeypatch.setattr(sys, "argv", ["clients", "--host", "--cohorts", "50", *given])
        clients.main()
        assert measured == rows
    monkeypatch.setattr(sys, "argv", ["clients", "--host", "--rows", "inprocess", "pool"])
    with pytest.raises(SystemExit) as exit_:
        clients.main()
    assert exit_.value.code == 2 and "--rows names pool; leave these out" in capsys.readouterr().err


def test_the_host_takes_milliseconds_of_the_round_that_took_the_fewest():
    work = Work("tiny", 100, 100, 3)
    measured = [Measured("inprocess", work, cpu=[9.0, 0.5, 0.25]), Measured("inprocess_vectorized", work, error="no")]
    assert measured[0].cpu_of_a_client == 2.5
    assert list(host(measured, [100]).columns[1].cells) == ["2.500", "no"]


def test_rounds_of_our_engine_are_timed_on_the_cpu():
    clock = ROWS["inprocess_vectorized"].measure(Work("tiny", 3, 3, 2))
    assert len(clock.cpu) == len(clock.seconds) == 2 and min(clock.cpu) > 0
