"""Workloads with options of the run's data section, and configurations of a few options."""

from __future__ import annotations

import dataclasses

from fedlab.config.data_options import DataConfig
from fedlab.config.run_options import RunConfig
from fedlab.registry import load_config

DATA = {field.name for field in dataclasses.fields(DataConfig)}


def make(kind, **fields):
    """A workload of a class; fields of the data section go there: ``make(Digits, targets="usps", max_examples=20)``."""
    data = DataConfig(**{"device": RunConfig().device, **{name: fields[name] for name in fields.keys() & DATA}})
    own = {name: value for name, value in fields.items() if name not in DATA}
    assert own.keys() <= {field.name for field in dataclasses.fields(kind)}  # pydantic says nothing of others
    return kind(**own, data_config=data)


def workload(name, **options):
    """A workload by name with options by key: ``workload("digits", **{"data.alpha": 0.1})``."""
    return load_config({"workload": name, **options}).workload
