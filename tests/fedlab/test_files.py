"""Atomic replacement and locks, also against another process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedlab import files
from fedlab.errors import RunError
from fedlab.files import directory_lock, write_atomically

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def disk_full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_second_holder_is_an_error_with_the_remedy_or_waits(tmp_path):
    folder = tmp_path / "deep"
    with directory_lock(folder, wait=False):
        second = directory_lock(folder, wait=False, remedy="choose another")
        with pytest.raises(RunError, match="in use by another process; choose another"), second:
            raise AssertionError("two holders")
        with directory_lock(folder, wait=False, name=".other"):  # another name is another lock
            pass
    with directory_lock(folder, wait=False):  # released
        pass


def test_the_lock_holds_against_another_process_and_is_released_when_it_dies(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / files.LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use"), directory_lock(tmp_path, wait=False):
            raise AssertionError("two holders")
        other.kill()
        with directory_lock(tmp_path, wait=True):
            pass
