"""Files that outlive a kill: atomic replacement, logs of lines, followers."""

from __future__ import annotations

import pytest

from fedlab.errors import RunError
from fedlab.files import LogTail, follow_lines, read_lines, truncate_torn_line
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
