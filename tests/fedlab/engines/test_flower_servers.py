"""Canaries: how Flower's servers run their rounds, in either API."""

from __future__ import annotations

import inspect
from pathlib import Path

import flwr
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, Strategy

from fedlab.engines import flower_servers


def test_older_servers_call_clients_through_functions_of_a_module_with_these_names():
    text = (Path(flwr.__file__).parent / "server" / "server.py").read_text(encoding="utf-8")
    for name in ("fit", "evaluate"):
        assert f"= {name}_clients(" in text and f"def {name}_client(" in text
        assert f"def _handle_finished_future_after_{name}(" in text
    assert "self.strategy.evaluate(current_round, parameters=self.parameters)" in text


def test_strategies_start_with_rounds_and_a_test_of_their_model():
    parameters = inspect.signature(Strategy.start).parameters
    assert {"grid", "initial_arrays", "num_rounds", "evaluate_fn"} <= parameters.keys()


def test_a_strategy_is_watched_once_though_its_start_calls_its_parents():
    seen = []

    class Watch:
        def on_start(self, strategy, rounds):
            seen.append((strategy, rounds))

        def on_evaluate(self, number, metrics):
            seen.append((number, dict(metrics)))

    class Mine(FedAvg):
        def start(self, grid, initial_arrays, num_rounds=3, **options):
            return super().start(grid, initial_arrays, num_rounds=num_rounds, **options)

    before = Strategy.start, Mine.__dict__["start"]
    with flower_servers.watched_servers(Watch()):
        Mine().start(None, ArrayRecord(), num_rounds=0, evaluate_fn=lambda number, arrays: {"accuracy": 1.0})
    assert seen == [("Mine", 0), ("Mine", 0), (0, {"accuracy": 1.0})]
    assert (Strategy.start, Mine.__dict__["start"]) == before
