"""Settings of the machine that `fedlab doctor` knows, each provoked as it would come about."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest
import torch

from fedlab import machine, machine_checks
from fedlab.doctor import CHECKS


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """An environment without settings of the machine's own."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in machine.numeric_environment():
            monkeypatch.delenv(name)


def only(check):
    (finding,) = check()
    assert finding.remedy or finding.status == "ok"
    return finding


def test_doctor_runs_every_check():
    ours = {
        value for value in vars(machine_checks).values() if getattr(value, "__module__", "") == "fedlab.machine_checks"
    }
    assert {check for check in ours if not check.__name__.startswith("_")} <= set(CHECKS)


@pytest.mark.parametrize("name", ["OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS"])
def test_a_limit_of_threads(monkeypatch, name):
    assert only(machine_checks.threads).status == "ok"
    monkeypatch.setenv(name, {"OMP_DYNAMIC": "TRUE", "OMP_THREAD_LIMIT": "1"}.get(name, "0"))
    finding = only(machine_checks.threads)
    assert finding.status == "bad" and finding.what.startswith(f"{name}=") and f"unset {name}" in finding.remedy


def test_the_processor_and_what_changes_its_bits(monkeypatch):
    assert "instructions" in only(machine_checks.capability).what
    monkeypatch.setenv("MKL_CBWR", "AVX")
    _, note = machine_checks.capability()
    assert note.status == "note" and "MKL_CBWR=AVX" in note.what


def test_modules_that_every_process_would_compile_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    finding = only(machine_checks.bytecode)
    assert finding.status == "note" and "PYTHONDONTWRITEBYTECODE is set" in finding.what
    assert "unset it" in finding.remedy and "-m compileall -q" in finding.remedy
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert "cannot be written" in only(machine_checks.bytecode).what
    compiled = Path(cache_from_source(torch.__file__))
    compiled.parent.mkdir(parents=True)
    compiled.touch()
    assert only(machine_checks.bytecode).status == "ok"


def test_no_proxy_at_all():
    assert only(machine_checks.proxies).status == "ok"


def test_a_proxy_that_answers_is_a_note_without_its_password(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{port}")
        finding = only(machine_checks.proxies)
    assert finding.status == "note" and f"the proxy 127.0.0.1:{port} (HTTPS_PROXY)" in finding.what
    assert "secret" not in finding.what
    monkeypatch.setenv("no_proxy", "*")
    assert only(machine_checks.proxies).status == "ok"


def test_a_proxy_that_does_not_answer(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{port}")
    finding = only(machine_checks.proxies)
    assert finding.status == "bad" and f"127.0.0.1:{port} (http_proxy) does not answer" in finding.what
    assert "unset http_proxy" in finding.remedy


@pytest.mark.parametrize(
    ("value", "words"), [("socks5h://127.0.0.1:1080", "a socks5h proxy, which gRPC"), ("http://:x", "is not the URL")]
)
def test_a_proxy_that_cannot_be_used(monkeypatch, value, words):
    monkeypatch.setenv("ALL_PROXY", value)
    finding = only(machine_checks.proxies)
    assert finding.status == "bad" and words in finding.what


def test_file_locks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert only(machine_checks.file_locks).status == "ok"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(errno.ENOLCK, "No locks available"), "No locks available"), (None, "keep nobody out")],
)
def test_a_file_system_without_locks(tmp_path, monkeypatch, error, words):
    def flock(file, operation):
        if error:
            raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "flock", flock)
    finding = only(machine_checks.file_locks)
    assert finding.status == "bad" and words in finding.what


def test_a_user_without_home(monkeypatch):
    def nowhere(cls=None):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    finding = only(machine_checks.home)
    assert finding.status == "note" and "has no home" in finding.what


def test_a_folder_of_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not yet"))
    assert only(machine_checks.home).status == "ok"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    assert "cannot be written" in only(machine_checks.home).what
