"""Settings of a machine that would stop a run, and that it names before it begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fedlab
from fedlab import machine
from fedlab.errors import ConfigError

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.parametrize(
    ("variables", "threads", "setting"),
    [
        ({"OMP_THREAD_LIMIT": "1"}, 2, "OMP_THREAD_LIMIT=1"),
        ({"OMP_THREAD_LIMIT": "3"}, 4, "OMP_THREAD_LIMIT=3"),
        ({"OMP_DYNAMIC": "TRUE"}, 2, "OMP_DYNAMIC=TRUE"),
        ({"OMP_DYNAMIC": "true"}, 2, "OMP_DYNAMIC=true"),
        ({"OMP_MAX_ACTIVE_LEVELS": "0"}, 2, "OMP_MAX_ACTIVE_LEVELS=0"),
        ({"OMP_THREAD_LIMIT": "1", "OMP_DYNAMIC": "TRUE"}, 1, ""),
        ({"OMP_THREAD_LIMIT": "2", "OMP_DYNAMIC": "FALSE", "OMP_NUM_THREADS": "1"}, 2, ""),
        ({"OMP_THREAD_LIMIT": "many", "OMP_MAX_ACTIVE_LEVELS": "1"}, 2, ""),
    ],
)
def test_settings_that_leave_a_run_without_its_threads(variables, threads, setting):
    assert machine.missing_threads(threads, variables) == setting


def test_a_run_that_would_wait_forever_for_threads_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    with pytest.raises(ConfigError, match="OMP_THREAD_LIMIT=1.*threads=2.*unset OMP_THREAD_LIMIT, or set threads=1"):
        fedlab.run("fedavg-digits", runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


FORK = """
import os, sys, torch, fedlab
from fedlab.seeds import deterministic

def product():
    with deterministic(int(sys.argv[1])):
        return torch.ones(300, 300) @ torch.ones(300, 300)

product()
if (child := os.fork()) == 0:
    try:
        product()
    except fedlab.errors.ConfigError as error:
        print(error, flush=True)
        os._exit(3)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("threads", "status"), [("1", 0), ("2", 3)])
def test_a_process_forked_after_a_run_on_several_threads_says_that_it_would_hang(threads, status):
    process = subprocess.Popen(
        [sys.executable, "-c", "import fedlab.errors\n" + FORK, threads],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(SUPPORT)])},
    )
    try:
        said = process.communicate(timeout=120)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert said.splitlines()[-1] == str(status)
    assert ("spawn" in said and "threads=1" in said) == bool(status)


def test_variables_of_numerical_libraries_are_found():
    found = machine.numeric_environment({"OMP_NUM_THREADS": "4", "ATEN_CPU_CAPABILITY": "avx2", "HOME": "/root"})
    assert found == {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "4"}


def test_the_processor_has_a_name():
    assert machine.processor_name()


def test_memory_that_holds_copies_of_files_is_free_and_a_containers_limit_counts(tmp_path):
    assert machine.free_memory(tmp_path) is None
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemFree: 100 kB\nMemAvailable: 9000000 kB\nHugePages_Total:       0\n")
    assert machine.free_memory(tmp_path) == 9000000 * 1024
    (group / "memory.current").write_text("950000000\n")
    (group / "memory.stat").write_text("anon 700000000\ninactive_file 250000000\n")
    for limit, free in (("max", 9000000 * 1024), ("1000000000", 300000000), ("600000000", 0)):
        (group / "memory.max").write_text(f"{limit}\n")
        assert machine.free_memory(tmp_path) == free
