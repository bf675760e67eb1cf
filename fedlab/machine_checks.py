"""Checks of ``fedlab doctor`` of settings of the machine: threads, processor, proxies, file locks, home.

Each is of a setting that stops a run, or changes its bits, without a word of its own.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

from fedlab.findings import Finding
from fedlab.machine import missing_threads, numeric_environment, processor_name

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")  # each in lower and in upper case
PORTS = {"http": 80, "https": 443}
TIMEOUT = 3.0  # seconds for a proxy to answer
NO_PROXY = "set no_proxy to the server's host, or unset it"


def threads() -> Iterator[Finding]:
    """Find settings of OpenMP with which a run waits forever for its threads."""
    from fedlab.config.schema import RunConfig

    if setting := missing_threads(RunConfig.threads):
        name = setting.partition("=")[0]
        what = f"{setting}: OpenMP starts fewer than {RunConfig.threads} threads, and torch waits for them forever"
        yield Finding("bad", what, f"unset {name}, or run with threads=1, which gives other bits")
    else:
        yield Finding("ok", f"nothing keeps OpenMP from starting {RunConfig.threads} threads")


def capability() -> Iterator[Finding]:
    """Report the instructions that torch uses, and variables that change them: bits are those of such machines."""
    found = import_module("torch").backends.cpu.get_cpu_capability()
    yield Finding("ok", f"{processor_name()}, instructions {found}: another set of them gives other bits")
    if variables := numeric_environment():
        said = ", ".join(f"{name}={value}" for name, value in variables.items())
        yield Finding("note", f"numerical libraries read {said}", "the manifest of a run records them; bits may differ")


def proxies() -> Iterator[Finding]:
    """Find proxies that gRPC cannot use or that do not answer; a client reaches its server through them."""
    names = [name for lower in PROXIES for name in (lower, lower.upper()) if os.environ.get(name)]
    if not names:
        return (yield Finding("ok", "no proxy is set: clients reach their server directly"))
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    for name in names:
        yield _proxy(name, os.environ[name], f"; no_proxy is {direct}" if direct else "")


def _proxy(name: str, value: str, direct: str) -> Finding:
    try:
        url = urlsplit(value if "://" in value else f"http://{value}")
        host, port = url.hostname, url.port or PORTS.get(url.scheme)
    except ValueError:
        host, port = None, None
    if not host:
        return Finding("bad", f"{name} is no address of a proxy{direct}", "write http://HOST:PORT, or unset it")
    shown = f"{name}={url.scheme}://{host}{f':{port}' if port else ''}"  # without user and password
    if url.scheme not in PORTS:
        return Finding("bad", f"{shown}: gRPC does not speak {url.scheme}{direct}", f"name an HTTP proxy, {NO_PROXY}")
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT):
            return Finding("note", f"{shown} answers{direct}", f"if a client does not reach its server, {NO_PROXY}")
    except OSError as error:
        return Finding("bad", f"{shown} does not answer, {error.strerror or error}{direct}", f"mend it, {NO_PROXY}")


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
