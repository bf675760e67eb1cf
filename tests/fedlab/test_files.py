"""Files that outlive a kill: atomic replacement, logs of lines, followers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from disks import full_disk
from fedlab.errors import ConfigError, FedlabWarning, RunError
from fedlab.files import (
    LOCK_FILE,
    LogTail,
    append_line,
    directory_lock,
    ensure_home,
    expand_user,
    follow_lines,
    limit_log,
    read_lines,
    truncate_torn_line,
    user_cache,
    write_atomically,
)
from waiting import wait_until


def test_a_tail_gives_each_complete_line_once(tmp_path):
    path = tmp_path / "log"
    assert LogTail(path).lines() == []
    path.write_text("old\ntorn")
    tail = LogTail(path, from_end=True)
    with path.open("a") as stream:
        stream.write(" one\ntw\N{LINE SEPARATOR}")
        stream.flush()
        assert tail.lines() == ["torn one"]
        stream.write("o\n\n")
    assert tail.lines() == ["tw\N{LINE SEPARATOR}o", ""]
    assert tail.lines() == []
    assert LogTail(path).lines() == ["old", "torn one", "tw\N{LINE SEPARATOR}o", ""]


def test_lines_are_followed_while_the_context_lasts_and_to_the_last(tmp_path):
    path, seen = tmp_path / "log", []
    with follow_lines(path, seen.extend, poll_seconds=0.01):
        path.write_text("one\n")
        wait_until(lambda: seen == ["one"], "the first line")
        with path.open("a") as stream:
            stream.write("two\nthree")
    assert seen == ["one", "two"]


def test_a_torn_line_is_cut_off_and_damage_elsewhere_is_named(tmp_path):
    path = tmp_path / "log"
    truncate_torn_line(path)
    assert not path.exists() and read_lines(path) == []
    path.write_text('{"a": 1}\n{"b"')
    assert read_lines(path) == [{"a": 1}]
    truncate_torn_line(path)
    assert path.read_text() == '{"a": 1}\n'
    path.write_text('{"a": 1}\nnonsense\n')
    with pytest.raises(RunError, match="line 2 of .* is damaged: 'nonsense'"):
        read_lines(path)


HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else_and_names_it(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(OSError, match="File too large") as error, full_disk(100):
        write_atomically(path, b"new" * 100)
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


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
    command = [sys.executable, "-c", HOLD, str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use"), directory_lock(tmp_path, wait=False):
            raise AssertionError("two holders")
        other.kill()
        with directory_lock(tmp_path, wait=True):
            pass


# --- a user without a home ---


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """A user id of a container: no $HOME, no entry in the table of users; returns the folder of temporary files."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # raises KeyError, as it does there
    return tmp_path


def test_a_user_without_a_home_gets_a_temporary_one_with_a_note(homeless):
    with pytest.warns(FedlabWarning, match="has no home folder; .* takes its place.*set HOME"):
        assert user_cache().parent.parent == homeless
    assert Path.home() == user_cache().parent  # for every library; said once
    assert Path.home().stat().st_mode & 0o777 == 0o700


def test_a_temporary_home_of_somebody_else_is_not_used(homeless, monkeypatch):
    (homeless / f"fedlab-home-{os.getuid() + 1}").mkdir()
    other = os.getuid() + 1
    monkeypatch.setattr("os.getuid", lambda: other)
    with pytest.warns(FedlabWarning):
        home = ensure_home()
    assert home != homeless / f"fedlab-home-{os.getuid()}" and home.is_dir()


def test_the_home_of_an_unknown_user_is_refused():
    with pytest.raises(ConfigError, match="no user 'no-such-user'"):
        expand_user("~no-such-user/certs")
    assert expand_user("~/certs") == Path.home() / "certs"


def test_a_log_that_grows_too_large_is_moved_once_and_followed_from_its_new_begin(tmp_path):
    path = tmp_path / "flower.log"
    with path.open("ab", buffering=0) as writer:  # as a process that goes on writing
        writer.write(b"first\nsecond\n")
        tail = LogTail(path)
        assert tail.lines() == ["first", "second"]
        limit_log(path, 13)
        assert path.stat().st_size == 13
        limit_log(path, 12)
        writer.write(b"third\n")
    assert tail.lines() == ["third"]
    assert (path.read_bytes(), (tmp_path / "flower.log.1").read_bytes()) == (b"third\n", b"first\nsecond\n")


def test_a_line_is_appended_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log"
    append_line(path, "one")
    with full_disk(6), pytest.raises(OSError, match="too large") as raised:
        append_line(path, "too long")
    assert raised.value.filename == str(path) and path.read_text() == "one\n"
    path.write_text("one\ntorn")
    append_line(path, "two")
    assert path.read_text() == "one\ntorn\ntwo\n"


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "log"
    program = "import sys; from fedlab.files import append_line; from pathlib import Path\n"
    program += "for _ in range(300): append_line(Path(sys.argv[1]), sys.argv[2] * 5000)"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert sorted(path.read_text().splitlines()) == ["a" * 5000] * 300 + ["b" * 5000] * 300
