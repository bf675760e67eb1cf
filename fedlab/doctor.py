"""Checks of ``fedlab doctor``: all that a run needs from this machine.

Each check tests one thing, as a run would use it, and reports what it found; a bad finding comes with a remedy. A check
that raises an exception is a bad finding too, and does not stop the others.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

from fedlab import machine_checks
from fedlab.errors import plural
from fedlab.findings import Check, Finding, Levels, enough
from fedlab.machine import free_memory

if TYPE_CHECKING:
    from packaging.requirements import Requirement

LOOPBACK = "127.0.0.1"
SHM = Path("/dev/shm")
PROGRAMS = ("flower-superlink", "flower-superexec", "flwr-serverapp")  # Flower starts its parts by name
# A Unix socket's path has at most 107 characters; this is our part and Ray's, below the temporary folder.
SOCKET = "/fedlab-xxxxxxxx/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
TEMP_LONGEST = 107 - len(SOCKET)
# Their libraries for a GPU come from other wheels and the driver; the check of torch imports both.
CHECKED_BY_IMPORT = ("torch", "torchvision")
REINSTALL = "the package is damaged: reinstall fedlab"

# GB: too few for a small run, and few for the main job.
MEMORY: Levels = {"bad": 0.5, "note": 2}
DISK: Levels = {"bad": 0.1, "note": 1}
SHARED: Levels = {"note": 0.25}  # Docker's default, 64 MB, is below the least that Ray's object store takes


def examine() -> list[Finding]:
    """Run all checks and return their findings, in the order of ``CHECKS``."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings.extend(check())
        except Exception as error:  # of any kind: it must not hide the other findings
            name = check.__name__.strip("_").replace("_", " ")
            what = f"the check of {name} failed, {type(error).__name__}: {_last_line(error)}"
            findings.append(Finding("bad", what, "fix what it names; if it names nothing, report this output"))
    return findings


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    old = tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11)
    remedy = "make a virtual environment with 3.11 or newer" * old
    yield Finding("bad" if old else "ok", f"Python {version}{', older than 3.11' * old}, in {sys.prefix}", remedy)


def _packages() -> Iterator[Finding]:
    """Compare installed versions with the ranges in fedlab's own metadata."""
    wanted = _requirements()
    found = [(one, _version(one.name)) for one in wanted]
    wrong = [(one, at) for one, at in found if not at or not one.specifier.contains(at, prereleases=True)]
    for one, version in wrong:
        state = f"{version} is outside the range" if version else "is not installed; wanted"
        yield Finding("bad", f"{one.name} {state} {one.specifier}", f"run `pip install '{one.name}{one.specifier}'`")
    if not wrong:
        yield Finding("ok", f"{len(wanted)} packages are within the ranges that fedlab asks for")


def _requirements() -> list[Requirement]:
    """Return the requirements in fedlab's own metadata, without those of extras."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("fedlab-adapt") or []]
    return [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def _system_libraries() -> Iterator[Finding]:
    """Find shared libraries that installed packages need and the system lacks; no package is imported for it."""
    from fedlab.shared_libraries import DEBIAN_PACKAGES, missing_libraries

    missing = missing_libraries(one.name for one in _requirements() if one.name not in CHECKED_BY_IMPORT)
    for library, packages in missing.items():
        debian = DEBIAN_PACKAGES.get(library)
        remedy = f"run `apt-get install {debian}`" if debian else f"install it; `apt-file search {library}` names it"
        yield Finding("bad", f"the system lacks {library}, which is needed by {', '.join(packages)}", remedy)
    if not missing:
        yield Finding("ok", "the system has all shared libraries that the packages need")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _flower() -> Iterator[Finding]:
    from packaging.version import Version

    version, install = metadata.version("flwr"), "pip install --force-reinstall 'flwr>=1.39,<1.40'"
    if Version(version) >= Version("1.40"):
        yield Finding("bad", f"Flower {version}: from 1.40 on its clients do not speak gRPC", f"run `{install}`")
    else:
        yield Finding("ok", f"Flower {version}: below 1.40, its clients speak gRPC")
    folder = Path(sysconfig.get_path("scripts"))
    missing = [name for name in PROGRAMS if not os.access(folder / name, os.X_OK)]
    if missing:
        yield Finding("bad", f"Flower's {', '.join(missing)} missing in {folder}", f"run `{install}`")
    else:
        yield Finding("ok", f"Flower's programs are in {folder}")


def _torch() -> Iterator[Finding]:
    """Import torch and torchvision together: from two indexes, each may import alone but not both."""
    remedy = "install both from one index: `pip install --force-reinstall torch torchvision`"
    yield (both := _imports(remedy, "torch", "torchvision"))
    if both.status == "ok" and (cuda := import_module("torch").cuda).is_available():
        yield Finding("ok", f"GPU: {', '.join(cuda.get_device_name(index) for index in range(cuda.device_count()))}")
    elif both.status == "ok":
        yield Finding("note", "no GPU that torch can use; the CPU does the work")


def _ray() -> Iterator[Finding]:
    yield _imports("run `pip install --force-reinstall ray`; engine=inprocess does without", "ray")


def _imports(remedy: str, *modules: str) -> Finding:
    try:
        versions = [f"{name} {import_module(name).__version__}" for name in modules]
    except Exception as error:
        return Finding("bad", f"{' and '.join(modules)} cannot be imported: {_last_line(error)}", remedy)
    return Finding("ok", f"{' and '.join(versions)} can be imported{' together' * (len(modules) > 1)}")


def _package_data() -> Iterator[Finding]:
    """Verify the checksums of the data in the package, and look up each domain as a run does."""
    from fedlab.data import download
    from fedlab.data.digits import datasets

    for path in sorted({*datasets.EMBEDDED.glob("*.npz"), datasets.EMBEDDED / datasets.BOUND_LABELS}):
        try:
            with zipfile.ZipFile(path) as archive:
                damage = f"has a wrong checksum in {torn}" if (torn := archive.testzip()) else ""
        except Exception as error:  # a damaged file can fail in nearly any way
            damage = f"cannot be read, {_last_line(error)}"
        if damage:
            yield Finding("bad", f"data in the package: {path.name} {damage}", REINSTALL)
    rows = download.available(None)
    for row in rows:
        if row.status != "ok" and (datasets.DOMAINS[row.domain].embedded or not datasets.DOMAINS[row.domain].full):
            yield Finding("bad", f"data in the package: {row.domain}, {row.status}", REINSTALL)
    if present := [row.domain for row in rows if row.status == "ok"]:
        yield Finding("ok", f"data in the package: {', '.join(present)}")


def _full_data() -> Iterator[Finding]:
    """Look up each domain in ``FEDLAB_DATA``, the folder of full sets."""
    from fedlab.data import download
    from fedlab.data.digits import datasets

    root = datasets.data_root()
    if root is None:
        return (yield Finding("ok", "FEDLAB_DATA is not set: runs read the data in the package"))
    fetch = f"fill it with `fedlab data download {root}`, or unset FEDLAB_DATA"
    if not root.is_dir():
        return (yield Finding("bad", f"FEDLAB_DATA is {root}, which is no folder", fetch))
    rows = [row for row in download.available(root) if datasets.DOMAINS[row.domain].full]
    damaged = [row for row in rows if "damaged" in row.status]
    there = [row.domain for row in rows if row.status == "ok" and row.where != "embedded"]
    # Those that fedlab brings along are read from the package, but not in full.
    missing = [
        row.domain
        for row in rows
        if row not in damaged and row.domain not in there and not datasets.DOMAINS[row.domain].optional
    ]
    for row in damaged:
        yield Finding("bad", f"FEDLAB_DATA: {row.domain}, {row.status}", f"delete the file, then {fetch}")
    if there:
        yield Finding("ok", f"FEDLAB_DATA is {root}, with the full {', '.join(there)}")
    if missing:
        yield Finding("note" if there else "bad", f"FEDLAB_DATA is {root}, without {', '.join(missing)}", fetch)


def _processor() -> Iterator[Finding]:
    from fedlab.config.resolve import THREADS

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    remedy = f"nothing to fix; threads={cpus} may be faster, and gives other bits"
    yield enough(f"{plural(cpus, 'CPU')} for {THREADS} threads", cpus, {"note": THREADS}, remedy)


def _memory() -> Iterator[Finding]:
    """Compare the free memory, within the limit of a container if there is one, with what runs take."""
    free = free_memory()
    if free is None:
        return (yield Finding("note", "memory: this system does not tell how much is free"))
    remedy = "close other programs, or lower server.batch_size and client.batch_size"
    yield enough(f"{free / 1e9:.1f} GB of memory free", free / 1e9, MEMORY, remedy)


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield enough(f"{free:.1f} GB free on the disk of {Path.cwd()}", free, DISK, "free some, or work elsewhere")


def _ports() -> Iterator[Finding]:
    try:
        with socket.create_server((LOOPBACK, 0)), socket.create_server((LOOPBACK, 0)):  # as many as a SuperLink needs
            yield Finding("ok", "ports of the loopback can be bound")
    except OSError as error:
        remedy = f"allow programs to listen on {LOOPBACK}; engine=inprocess does without"
        yield Finding("bad", f"no port of the loopback can be bound, {error}", remedy)


def _temporary_folder() -> Iterator[Finding]:
    folder = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()  # as the Ray engine chooses
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        remedy = "free some of it, or set TMPDIR to another"
        return (yield Finding("bad", f"temporary folder {folder} cannot be written, {error}", remedy))
    what = f"temporary folder {folder}: {len(folder)} of at most {TEMP_LONGEST} characters that Ray's sockets allow"
    remedy = "make /tmp writable, or set TMPDIR to a shorter path; engine=inprocess does without"
    yield enough(what, TEMP_LONGEST - len(folder), {"bad": 0}, remedy)


def _shared_memory() -> Iterator[Finding]:
    size = shutil.disk_usage(SHM).total / 1e9 if SHM.is_dir() else 0.0
    remedy = "Ray takes the slower temporary folder instead; in Docker, start the container with --shm-size=1g"
    yield enough(f"{size:.1f} GB in {SHM} for Ray", size, SHARED, remedy)


CHECKS: tuple[Check, ...] = (
    *(_python, _packages, _system_libraries, _flower, _torch, _ray, _package_data, _full_data),
    *(_processor, machine_checks.threads, machine_checks.capability, machine_checks.bytecode),
    *(_memory, _disk, machine_checks.file_locks, machine_checks.home),
    *(_ports, machine_checks.proxies, _temporary_folder, _shared_memory),
)
