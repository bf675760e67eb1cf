"""Clients of a finished run that adapt once more: the bits of a run that ends with the method."""

from __future__ import annotations

import pytest
import torch

from benchmarks.adapted_clients import FinishedRun
from benchmarks.ingredients import keep_statistics
from fedlab import launch
from fedlab.comparison.cells import run_or_resume
from fedlab.registry import load_config
from fedlab.runs.client_state import ClientState
from fedlab.runs.result import Result
from fedlab.strategies.client_adaptation import source_free
from tables import put
from toy import SMALL, SPEC

SHORT = {"source_free.steps": 3, "source_free.batch_size": 8, "source_free.guard": False}


@pytest.fixture
def result(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", SPEC)

    def run(**changes) -> Result:
        config = launch.prepare({**SMALL, "report": False, "name": changes["strategy"], **changes}, {})
        return run_or_resume(tmp_path / f"{changes['strategy']}-0", lambda: config)

    return run


def test_a_client_adapts_to_the_bits_of_a_run_with_the_method(result):
    whole = result(strategy="source_free", **SHORT)
    options = load_config({"strategy": "source_free", **SHORT}).adaptation
    run = FinishedRun(result(strategy="source_only"))
    arrays, report = run.adapt(1, source_free.METHOD, options)
    theirs = ClientState(whole.directory / "client-state" / "1").load(whole.rounds[-1]["round"] + 1)
    assert report == theirs["report"]
    assert all(torch.equal(tensor, arrays[name]) for name, tensor in theirs["states"]["arrays"].items())
    accuracy = list(whole.final().values())[1]["accuracy_personal"]
    assert run.accuracy(1, arrays) == accuracy != run.accuracy(1, run.arrays)


def test_batch_norms_stand_still_in_a_step_and_move_where_statistics_are_taken():
    features = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    features.register_forward_pre_hook(keep_statistics)
    x, before = torch.randn(8, 4), features[1].running_mean.clone()
    features.train()(x)
    assert torch.equal(features[1].running_mean, before)
    with torch.no_grad():
        features.train()(x)
    assert not torch.equal(features[1].running_mean, before)
