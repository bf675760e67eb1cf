"""A comparison of objects: of this process, and of modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fedlab
from fedlab.comparison import grid, plan
from fedlab.comparison.objects import named_preset, named_strategies
from fedlab.errors import ConfigError
from fedlab.strategies import source_only
from toy import Blobs, blobs

FEW = {"strategy": "fedavg", "threads": 1, "rounds": 1, "client.steps": 2, "client.batch_size": 16, "report": False}


@pytest.fixture
def task():
    shards = {name: tuple(blobs(40, shift, 3).values()) for name, shift in (("near", 0.0), ("far", 0.5))}
    return fedlab.classification(lambda: nn.Linear(4, 3), shards, server=shards["near"])


def test_objects_of_this_process_are_compared_in_it(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    strategies = {"mean": "fedavg", "none": source_only.SPEC}
    frame = fedlab.compare(FEW, strategies, workload=task, seeds=1)
    assert list(dict.fromkeys(frame["label"])) == ["mean", "none"] and set(frame["client"]) == {"near", "far"}
    made = fedlab.Comparison.read("comparisons/workload_spec")
    assert {cell.status for cell in made.cells} == {"finished"} and made.command.startswith("# ")

    def planned(**more):
        table, title = named_preset(FEW, task)
        request = plan.ComparisonRequest(table, named_strategies(strategies), 1, title=title, **more)
        return [cell.run for cell in plan.plan_comparison(request).comparison.cells]

    assert planned() == [cell.run for cell in made.cells]  # found again in this process,
    with pytest.raises(ConfigError, match=r"object that only this process has.*jobs=1.*import path"):
        planned(jobs=2)
    monkeypatch.setattr(grid, "PROCESS", "another")  # and taken for its own by no other
    assert not set(planned()) & {cell.run for cell in made.cells}


def test_what_can_be_imported_is_named_by_its_path():
    table, title = named_preset("", Blobs(domains="a,b"))
    assert (table["workload"], table["blobs.domains"], title) == ("toy:Blobs", "a,b", "blobs")
    assert named_preset("dualadapt-digits", None) == ("dualadapt-digits", "dualadapt-digits")
    assert named_preset({"name": "mine", "rounds": 3}, None) == ({"rounds": 3}, "mine")
    names = named_strategies(["fedavg", source_only.SPEC])
    assert names == ["fedavg", "fedlab.strategies.source_only:SPEC"]
    assert named_strategies({"A": source_only.SPEC}) == ["A=fedlab.strategies.source_only:SPEC"]


@pytest.mark.parametrize("label", ["FedAvg: tuned", "a|b", "a\nb"])
def test_a_label_that_could_not_be_read_back_is_refused(label):
    assert named_strategies({"a, b = 3": "fedavg"}) == ["a, b = 3=fedavg"]
    with pytest.raises(ConfigError, match="which stands between variants or their options"):
        named_strategies({label: "fedavg"})


def test_what_is_no_strategy_is_refused():
    with pytest.raises(ConfigError, match="strategy"):
        fedlab.compare(FEW, [torch.tensor(1)], workload=Blobs())
