"""Names of needed libraries, read from files that the test writes or compiles, against a loader that is the test's."""

from __future__ import annotations

import _ctypes
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedlab import shared_libraries
from fedlab.shared_libraries import missing_libraries, needed


def elf(*names):
    """A file with two section headers: a dynamic section that needs ``names``, and its string table."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    offsets = [strings.index(b"\0" + name.encode() + b"\0") + 1 for name in names]
    dynamic = b"".join(struct.pack("<qQ", 1, offset) for offset in offsets) + struct.pack("<qQ", 0, 0)
    at = 64
    sections = at + len(dynamic) + len(strings)
    header = b"\x7fELF\x02\x01".ljust(0x28, b"\0") + struct.pack("<Q", sections)
    header = header.ljust(0x3A, b"\0") + struct.pack("<HH", 64, 2)
    headers = struct.pack("<IIQQQQIIQQ", 0, 6, 0, 0, at, len(dynamic), 1, 0, 0, 0)
    headers += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, at + len(dynamic), len(strings), 0, 0, 0, 0)
    return header.ljust(at, b"\0") + dynamic + strings + headers


def test_names_are_read_from_the_dynamic_section(tmp_path):
    path = tmp_path / "a.so"
    path.write_bytes(elf("libXrender.so.1", "libc.so.6"))
    assert needed(path) == ["libXrender.so.1", "libc.so.6"]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")
def test_readelf_finds_the_same_names():
    printed = subprocess.run(["readelf", "-d", _ctypes.__file__], capture_output=True, text=True, check=True).stdout
    names = [line.split("[")[1].split("]")[0] for line in printed.splitlines() if "(NEEDED)" in line]
    assert needed(Path(_ctypes.__file__)) == names


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF\x01\x01", b"\x7fELF\x02\x01", elf("liba.so")[:100]])
def test_other_and_damaged_files_need_nothing(tmp_path, content):
    path = tmp_path / "a.so"
    path.write_bytes(content)
    assert needed(path) == []
    assert needed(tmp_path / "none.so") == []


def test_what_a_wheel_brings_and_what_the_system_has_is_not_missing(tmp_path, monkeypatch):
    wheels = {"one": {"a.so": ["libown-1.so.2", "libX.so.6", "libc.so.6"], "libown-1.so.2": ["libX.so.6"]}}
    wheels["two"] = {"b.so": ["libX.so.6", "libY.so.1"], "b.py": []}
    for name, files in wheels.items():
        for file, names in files.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).write_bytes(elf(*names))

    def files(name):
        if name not in wheels:
            raise shared_libraries.metadata.PackageNotFoundError(name)
        paths = [tmp_path / name / file for file in wheels[name]]
        return [SimpleNamespace(suffixes=path.suffixes, locate=lambda path=path: path) for path in paths]

    def load(name):
        if name != "libc.so.6":
            raise OSError(name)

    monkeypatch.setattr(shared_libraries.metadata, "files", files)
    missing = missing_libraries(["one", "two", "not installed"], load)
    assert missing == {"libX.so.6": ["one", "two"], "libY.so.1": ["two"]}
