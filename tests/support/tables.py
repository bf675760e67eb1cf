"""Things of a test in the registry's tables, for as long as the test runs."""

from __future__ import annotations

from fedlab import launch, plugins, registry
from fedlab.engines import inprocess
from fedlab.training import null_progress


def put(monkeypatch, kind, name, spec):
    """Make a spec known under a name; ``kind`` is "workload", "strategy", "aggregation" or "engine"."""
    reference = f"{plugins.LIVE}test-{kind}-{name}"
    monkeypatch.setitem(registry.KINDS[kind].table, name, registry.Row(reference, f"a test's {name}"))
    monkeypatch.setitem(plugins.live_objects, reference, spec)
    forget()


def forget():
    """Drop what the registry has found and resolved so far."""
    registry.forget()


def server_strategy(config, workload=None, progress=null_progress):
    """The server half of a configuration's strategy, for its workload or another one."""
    spec = config.plugins["strategy"].spec
    return spec.server(config.workload if workload is None else workload, config, progress)


def lead(directory):
    """Lead a run directory to its end, through the two apps on the in-process engine."""
    inprocess.run_config(launch.APPS, launch.saved_config(directory), directory.path)


def client_functions(strategy):
    """The client half of a strategy by name."""
    return registry.find("strategy", strategy).spec.client
