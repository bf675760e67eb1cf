"""Checks of ``fedlab doctor`` of settings of the machine: threads, processor, bytecode, proxies, file locks, home.

Each is of a setting that stops a run, slows it down or changes its bits, without a word of its own.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.util import cache_from_source
from pathlib import Path

from fedlab.deploy.proxies import find_proxy
from fedlab.findings import Finding
from fedlab.machine import missing_threads, numeric_environment, processor_name

ELSEWHERE = "192.0.2.1"  # an address of documentation (RFC 5737): of no machine, and so of any server
TIMEOUT = 3.0  # seconds for a proxy to answer


def threads() -> Iterator[Finding]:
    """Find settings of OpenMP with which a run waits forever for its threads."""
    from fedlab.config.resolve import THREADS

    if setting := missing_threads(THREADS):
        name = setting.partition("=")[0]
        what = f"{setting}: OpenMP starts fewer than {THREADS} threads, and torch waits for them forever"
        yield Finding("bad", what, f"unset {name}, or run with threads=1, which gives other bits")
    else:
        yield Finding("ok", f"nothing keeps OpenMP from starting {THREADS} threads")


def capability() -> Iterator[Finding]:
    """Report the instructions that torch uses, and variables that change them: bits are those of such machines."""
    found = import_module("torch").backends.cpu.get_cpu_capability()
    yield Finding("ok", f"{processor_name()}, instructions {found}: another set of them gives other bits")
    if variables := numeric_environment():
        said = ", ".join(f"{name}={value}" for name, value in variables.items())
        yield Finding("note", f"numerical libraries read {said}", "the manifest of a run records them; bits may differ")


def bytecode() -> Iterator[Finding]:
    """Look for torch's compiled modules: without them each process of a run compiles what it imports, about 2 s."""
    source = Path(import_module("torch").__file__ or "")
    if Path(cache_from_source(source)).is_file():
        return (yield Finding("ok", "Python keeps compiled modules, so that processes start quickly"))
    folder = source.parents[1]
    reason, remedy = f"{folder} cannot be written", "compile them once, as a user who may write there: "
    if sys.dont_write_bytecode:
        reason, remedy = "PYTHONDONTWRITEBYTECODE is set", "unset it, or compile them once: "
    what = f"Python cannot keep torch's compiled modules, {reason}: each process compiles them anew, about 2 s"
    yield Finding("note", what, f"{remedy}`{sys.executable} -m compileall -q {folder}`")


def proxies() -> Iterator[Finding]:
    """Find proxies that gRPC cannot use or that do not answer; a client reaches its server through them."""
    proxy, unusable = find_proxy(ELSEWHERE)
    if unusable:
        return (yield Finding("bad", unusable, "unset the variable, or name the server's host in no_proxy"))
    if proxy is None:
        return (yield Finding("ok", "clients reach a server directly, without a proxy"))
    remedy = f"unset {proxy.variable}, or name the server's host in no_proxy, if it can be reached without a proxy"
    try:
        with socket.create_connection((proxy.url.hostname or "", proxy.port), TIMEOUT):
            yield Finding("note", f"clients reach a server by way of {proxy}, which answers", remedy)
    except OSError as error:
        yield Finding("bad", f"{proxy} does not answer, {error.strerror or error}", remedy)


def file_locks() -> Iterator[Finding]:
    """Lock a file here as a run locks its directory, and try it a second time."""
    here, remedy = Path.cwd(), "work in a folder of a local disk that you may write (--runs, --out, --state-dir)"
    try:
        with tempfile.NamedTemporaryFile(dir=here, prefix=".fedlab-") as first, open(first.name, "rb") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return (yield Finding("ok", f"files in {here} can be locked"))
    except OSError as error:
        return (yield Finding("bad", f"no file can be written and locked in {here}, {error.strerror or error}", remedy))
    yield Finding("bad", f"locks of files in {here} keep nobody out: two runs could write one directory", remedy)


def home() -> Iterator[Finding]:
    """Find the folder of caches: that of XDG_CACHE_HOME, else below the home."""
    remedy = "set HOME or XDG_CACHE_HOME to a folder that you may write, or molecules are parsed again in each process"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # neither HOME nor an entry of this user in passwd, as in containers
        return (yield Finding("note", f"user {os.getuid()} has no home", remedy))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        yield Finding("ok", f"caches go to {folder}")
    else:
        yield Finding("note", f"caches cannot be written to {folder}", remedy)
