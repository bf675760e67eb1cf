"""Each failure is provoked as it would come about, as far as a test can: damaged files, taken folders, old versions."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections import namedtuple
from importlib import metadata

import pytest
from typer.testing import CliRunner

from fedlab import doctor, shared_libraries
from fedlab.cli.app import app
from fedlab.data.digits import datasets
from fedlab.doctor import CHECKS, Finding, examine

Usage = namedtuple("Usage", "total used free")


def found(check):
    """A check's findings, of which every bad one says what to do."""
    findings = list(check())
    assert findings
    assert all(finding.remedy for finding in findings if finding.status == "bad")
    return findings


def the_bad(check):
    bad = [finding for finding in found(check) if finding.status == "bad"]
    assert bad
    return bad[0]


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """A copy of the package's data that a test may damage."""
    folder = tmp_path / "embedded"
    shutil.copytree(datasets.EMBEDDED, folder)
    monkeypatch.setattr(datasets, "EMBEDDED", folder)
    return folder


@pytest.fixture
def versions(monkeypatch):
    """Installed versions that a test may change; None takes a package away."""
    true, changed = metadata.version, {}

    def version(name):
        if name in changed and changed[name] is None:
            raise metadata.PackageNotFoundError(name)
        return changed.get(name) or true(name)

    monkeypatch.setattr(metadata, "version", version)
    return changed


def test_every_check_says_something_of_this_machine():
    findings = examine()
    full = ("memory free", "free on the disk")  # which is no fault of ours
    assert [it for it in findings if it.status == "bad" and not any(words in it.what for words in full)] == []
    assert len(findings) >= len(CHECKS)
    said = " ".join(finding.what for finding in findings)
    for word in ("Python", "packages", "Flower", "torchvision", "ray", "mnist", "FEDLAB_DATA", "CPU", "memory", "disk"):
        assert word in said


def test_doctor_is_there_before_torch_is():
    """It has to say that torch is broken, so nothing that it needs to start may import torch."""
    code = "import sys, fedlab.cli.app, fedlab.doctor; sys.exit(bool({'torch', 'numpy', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_check_that_breaks_is_a_finding_and_hides_no_other(monkeypatch):
    def breaks():
        yield Finding("ok", "so far")
        raise ValueError("of course\nthe cause")

    def fine():
        yield Finding("ok", "fine")

    monkeypatch.setattr(doctor, "CHECKS", (breaks, fine))
    findings = examine()
    assert [finding.status for finding in findings] == ["ok", "bad", "ok"]
    assert findings[1].what == "the check of breaks failed, ValueError: the cause"
    assert findings[1].remedy


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "9", "2"))
    assert "older than 3.11" in the_bad(doctor._python).what


def test_a_package_out_of_its_range(versions):
    versions["jinja2"] = "2.1"
    bad = the_bad(doctor._packages)
    assert bad.what == "jinja2 2.1 is outside the range >=3.1"
    assert bad.remedy == "run `pip install 'jinja2>=3.1'`"
    assert len(found(doctor._packages)) == 1


def test_a_package_that_is_missing_even_if_any_version_would_do(versions, monkeypatch):
    versions["nowhere"] = None
    monkeypatch.setattr(metadata, "requires", lambda name: ["nowhere", "numpy>=2.0; extra == 'never'", "rich>=13"])
    assert [finding.what for finding in found(doctor._packages)] == ["nowhere is not installed; wanted "]


def test_a_missing_system_library_is_named_by_its_debian_package(monkeypatch):
    def load(name):
        if name in ("libXrender.so.1", "libXext.so.6", "libexpat.so.1"):
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(shared_libraries.missing_libraries, "__defaults__", (load,))
    bad = {finding.what: finding.remedy for finding in found(doctor._system_libraries)}
    assert bad == {
        "the system lacks libXext.so.6, which is needed by rdkit": "run `apt-get install libxext6`",
        "the system lacks libXrender.so.1, which is needed by rdkit": "run `apt-get install libxrender1`",
        "the system lacks libexpat.so.1, which is needed by rdkit": "run `apt-get install libexpat1`",
    }


def test_a_missing_library_of_an_unknown_package_has_a_remedy_too(monkeypatch):
    monkeypatch.setattr(shared_libraries, "missing_libraries", lambda names: {"libodd.so.3": ["pillow", "rdkit"]})
    bad = the_bad(doctor._system_libraries)
    assert bad.what == "the system lacks libodd.so.3, which is needed by pillow, rdkit"
    assert "apt-file search libodd.so.3" in bad.remedy


def test_doctor_never_imports_rdkit():
    """Its import fails where the libraries are missing that doctor is to name."""
    code = "import sys, fedlab.doctor; fedlab.doctor.examine(); sys.exit('rdkit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_newer_flower(versions):
    versions["flwr"] = "1.40.0"
    assert "do not speak gRPC" in the_bad(doctor._flower).what
    assert "flwr 1.40.0 is outside the range" in the_bad(doctor._packages).what


def test_a_missing_program_of_flower(tmp_path, monkeypatch):
    (tmp_path / "flower-superlink").touch(mode=0o755)
    (tmp_path / "flwr-serverapp").touch(mode=0o644)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Flower's flower-superexec, flwr-serverapp missing" in the_bad(doctor._flower).what


@pytest.mark.parametrize(("check", "module"), [(doctor._torch, "torchvision"), (doctor._ray, "ray")])
def test_a_package_that_cannot_be_imported(check, module, monkeypatch):
    def fails(name):
        if name == module:
            raise RuntimeError("operator torchvision::nms does not exist")
        return importlib.__import__(name)

    monkeypatch.setattr(doctor, "import_module", fails)
    bad = the_bad(check)
    assert bad.what.endswith("cannot be imported: operator torchvision::nms does not exist")
    assert len(found(check)) == 1


def test_the_gpu_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"H{index}00")
    assert Finding("ok", "GPU: H000, H100") in found(doctor._torch)


@pytest.mark.parametrize("name", ["usps_test.npz", datasets.BOUND_LABELS])
def test_one_wrong_byte_in_the_packages_data(embedded, name):
    content = bytearray((embedded / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (embedded / name).write_bytes(content)
    bad = the_bad(doctor._package_data)
    assert name in bad.what and "reinstall" in bad.remedy


@pytest.mark.parametrize("name", ["mnist_train.npz", datasets.BOUND_LABELS])
def test_data_of_the_package_cut_short_or_missing(embedded, name):
    path = embedded / name
    path.write_bytes(path.read_bytes()[:500])
    assert name in the_bad(doctor._package_data).what
    path.unlink()
    what = [finding.what for finding in found(doctor._package_data) if finding.status == "bad"]
    assert any(name in sentence for sentence in what)


def test_full_data_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path / "nowhere"))
    bad = the_bad(doctor._full_data)
    assert "no folder" in bad.what and "unset FEDLAB_DATA" in bad.remedy
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    assert "without mnist, usps" in the_bad(doctor._full_data).what


def test_full_data_in_part_is_a_note_and_damaged_is_bad(tmp_path, monkeypatch):
    (tmp_path / "mnist_m").mkdir()
    for part in ("train", "test"):
        shutil.copy(datasets.EMBEDDED / f"mnist_m_{part}.npz", tmp_path / "mnist_m" / f"{part}.npz")
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    ok, note = found(doctor._full_data)
    assert ok == Finding("ok", f"FEDLAB_DATA is {tmp_path}, with the full mnist_m")
    assert note.status == "note" and "without mnist, usps, svhn" in note.what
    (tmp_path / "mnist_m" / "test.npz").write_bytes(b"not a zip file")
    assert "damaged" in the_bad(doctor._full_data).what


def test_few_processors_are_a_note(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert [finding.status for finding in found(doctor._processor)] == ["note"]


@pytest.mark.parametrize(("free", "status"), [(300_000_000, "bad"), (1_500_000_000, "note"), (9 * 10**9, "ok")])
def test_memory(free, status, monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: free)
    (finding,) = found(doctor._memory)
    assert finding.status == status and finding.what == f"{free / 1e9:.1f} GB of memory free"


def test_a_system_that_does_not_tell_its_memory(monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: None)
    assert [finding.status for finding in found(doctor._memory)] == ["note"]


def test_a_full_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10**7))
    assert "0.0 GB free" in the_bad(doctor._disk).what


def test_ports_that_nobody_may_bind(monkeypatch):
    def refuse(address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    assert "Permission denied" in the_bad(doctor._ports).what


def test_a_temporary_folder_too_deep_for_rays_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert len(str(tmp_path)) > doctor.TEMP_LONGEST
    assert f"{len(str(tmp_path))} of at most" in the_bad(doctor._temporary_folder).what
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert "cannot be written" in the_bad(doctor._temporary_folder).what


def test_a_path_of_the_longest_length_is_a_socket_and_a_longer_one_is_not():
    """The arithmetic, against the kernel."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        longest = folder + "/" + "x" * (doctor.TEMP_LONGEST + len(doctor.SOCKET) - len(folder) - 1)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(longest)
        with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match="too long"):
            one.bind(longest + "x")


def test_little_shared_memory_is_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SHM", tmp_path / "nowhere")
    (note,) = found(doctor._shared_memory)
    assert note.status == "note" and "--shm-size" in note.remedy


def test_the_command_exits_with_0_where_nothing_is_bad(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("ok", "fine"), Finding("note", "no GPU")])
    answer = CliRunner().invoke(app, ["doctor"])
    assert answer.exit_code == 0
    assert "ok   fine" in answer.output and "note no GPU" in answer.output


def test_the_command_exits_with_1_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (doctor._python, doctor._full_data))
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path / "nowhere"))
    answer = CliRunner().invoke(app, ["doctor"])
    assert answer.exit_code == 1
    assert "bad  FEDLAB_DATA is" in answer.output and "-> fill it with" in answer.output
