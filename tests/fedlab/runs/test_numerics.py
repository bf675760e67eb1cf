"""Facts of the machine in the manifest, and warnings where two of them differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fedlab
import toy
from fedlab.runs.numerics import DifferentMachinesWarning, different_facts, numerics
from tables import put


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)


def run(tmp_path):
    return fedlab.run({**toy.SMALL, "rounds": 1, "name": "toy"}, runs=tmp_path)


def change(result, **facts):
    """Change a run's manifest to that of another machine."""
    path = result.directory / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["numerics"] |= facts
    path.write_text(json.dumps(manifest))
    return fedlab.Result.read(result.directory)


def test_the_manifest_has_processor_settings_and_libraries(tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    manifest = run(tmp_path).manifest
    facts = manifest["numerics"]
    assert facts["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert facts["environment"]["MKL_CBWR"] == "COMPATIBLE"
    assert facts["processor"] and facts["gpus"] == []
    assert all(version[0].isdigit() for version in facts["libraries"].values())
    assert manifest["options"]["threads"] == 1
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_the_capability_is_the_one_that_a_variable_asks_for():
    code = "from fedlab.runs.numerics import numerics; print(numerics('cpu')['cpu_capability'])"
    asked = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "DEFAULT"


def test_differences_are_those_that_change_bits():
    facts = {**numerics("cpu"), "cpu_capability": "AVX2", "environment": {}}  # whatever is set where tests run
    one = {"numerics": facts, "versions": {"torch": "2.14.1", "ray": "1"}}
    other = {"numerics": {**one["numerics"], "cpu_capability": "AVX512", "processor": "another"}, "versions": {}}
    assert different_facts(one, one) == []
    assert different_facts(one, other) == ["instructions of the processor (AVX2 and AVX512)"]
    assert different_facts(one, {**one, "versions": {"torch": "2.15", "ray": "2"}}) == ["torch (2.14.1 and 2.15)"]
    variables = {"OMP_NUM_THREADS": "3", "MKL_CBWR": "AVX"}
    settings = {**one["numerics"], "environment": variables}
    assert different_facts({}, {**one, "numerics": settings}) == []  # the first is of an older version
    assert different_facts(one, {**one, "numerics": settings}) == [
        "settings of numerical libraries (none and MKL_CBWR=AVX)"
    ]


def test_hashes_of_different_machines_are_compared_with_a_warning(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert first.has_same_bits(second)
        assert first.has_same_bits(change(second, cpu_capability="ancient"))
    path = second.directory / "manifest.json"
    path.write_text(path.read_text().replace(second.weights_sha256, "0" * 64))
    with pytest.warns(DifferentMachinesWarning, match="instructions of the processor .*ancient.*for that alone"):
        assert not first.has_same_bits(fedlab.Result.read(second.directory))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not first.has_same_bits(change(second, **first.manifest["numerics"]))  # of one machine: no excuse


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path):
    result = change(run(tmp_path), cpu_capability="ancient")
    with pytest.warns(DifferentMachinesWarning, match="toy-0 began, and goes on, with different instructions"):
        fedlab.resume(result.directory, rounds=2)


def test_cells_of_different_machines_are_named(tmp_path, comparison):
    assert comparison.machine_differences == []
    first = Path(comparison.path(comparison.cells[0])) / "manifest.json"
    before = first.read_text()
    changed = json.loads(before)
    changed["numerics"]["cpu_capability"] = "ancient"
    first.write_text(json.dumps(changed))
    try:
        (difference,) = fedlab.Comparison(**vars_of(comparison)).machine_differences
    finally:
        first.write_text(before)
    assert difference.startswith("instructions of the processor (ancient and ")


def vars_of(comparison):
    """The fields, without what was read so far."""
    return {name: getattr(comparison, name) for name in comparison.__dataclass_fields__}
