"""Shared libraries of the system that installed wheels need, found without importing the wheels.

A wheel brings most of its libraries along and expects a few from the system; RDKit's drawing, for instance, needs those
of X11. Which ones is written in the dynamic section of each ELF file.

**Source**: Tool Interface Standard (TIS), Executable and Linking Format (ELF) Specification 1.2, and elf(5).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

DEBIAN_PACKAGES = {
    "libGL.so.1": "libgl1",
    "libICE.so.6": "libice6",
    "libSM.so.6": "libsm6",
    "libX11.so.6": "libx11-6",
    "libXext.so.6": "libxext6",
    "libXrender.so.1": "libxrender1",
    "libexpat.so.1": "libexpat1",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libgcc_s.so.1": "libgcc-s1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgomp.so.1": "libgomp1",
    "libstdc++.so.6": "libstdc++6",
    "libxcb.so.1": "libxcb1",
    "libz.so.1": "zlib1g",
}
DYNAMIC_SECTION, NEEDED = 6, 1  # SHT_DYNAMIC and DT_NEEDED


def missing_libraries(
    distributions: Iterable[str], load: Callable[[str], object] = ctypes.CDLL
) -> dict[str, list[str]]:
    """Return the libraries that wheels need and the system lacks: name of each to the distributions that need it.

    Parameters
    ----------
    distributions
        Names of installed distributions; others are skipped.
    load
        Called with the name of a library; raises OSError when the system has none.
    """
    missing = {}
    for library, wheels in system_libraries(distributions).items():
        try:
            load(library)
        except OSError:
            missing[library] = wheels
    return missing


def system_libraries(distributions: Iterable[str]) -> dict[str, list[str]]:
    """Return the libraries that wheels need and none of them brings: name of each to the distributions that need it."""
    wanted: dict[str, set[str]] = {}
    bundled: set[str] = set()
    for name in distributions:
        for path in _libraries(name):
            bundled.add(path.name)
            for library in needed(path):
                wanted.setdefault(library, set()).add(name)
    return {library: sorted(wanted[library]) for library in sorted(wanted.keys() - bundled)}


def _libraries(distribution: str) -> list[Path]:
    """Return the shared libraries and extension modules of an installed distribution."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if ".so" in file.suffixes]


def needed(path: Path) -> list[str]:
    """Return the names of the libraries that a 64-bit little-endian ELF file needs; none for any other file."""
    try:
        with path.open("rb") as stream:
            if stream.read(6) != b"\x7fELF\x02\x01":
                return []
            return _needed(stream)
    except (OSError, struct.error, IndexError):  # damaged
        return []


def _needed(stream: BinaryIO) -> list[str]:
    def unpack(form: str, at: int) -> tuple[int, ...]:
        stream.seek(at)
        return struct.unpack(form, stream.read(struct.calcsize(form)))

    (table,) = unpack("<Q", 0x28)  # offset of the section headers
    size, count = unpack("<HH", 0x3A)  # size of each, and their number
    headers = [unpack("<IIQQQQII", table + index * size) for index in range(count)]
    names = []
    for _, kind, _, _, offset, length, link, _ in headers:
        if kind != DYNAMIC_SECTION:
            continue
        strings = headers[link][4]  # offset of the names' string table
        for at in range(offset, offset + length, 16):
            tag, value = unpack("<qQ", at)
            if tag == NEEDED:
                stream.seek(strings + value)
                names.append(stream.read(256).partition(b"\0")[0].decode(errors="replace"))
    return names
