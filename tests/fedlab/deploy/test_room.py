"""A client's directory that takes nothing more: its owner is told once, and when there is room again."""

from __future__ import annotations

from pathlib import Path

import pytest

from disks import full_disk
from fedlab.deploy import room


def test_a_folder_that_takes_nothing_is_named_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    room.check_room(tmp_path)
    with full_disk(room.PROBE_BYTES - 1), pytest.raises(OSError, match="too large") as raised:
        room.check_room(tmp_path)
    assert raised.value.filename == str(tmp_path)
    assert not list(tmp_path.iterdir())


def test_each_change_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "EVERY", 0.0)
    said: list[str] = []
    watch = room.RoomWatch(tmp_path, said.append)
    for full in (False, True, True, False, False, True):
        with full_disk(0 if full else 1_000_000):
            watch.look()
        assert watch.is_full == full
    assert len(said) == 3
    assert "file too large" in said[0] and "keeps no model" in said[0] and said[2] == said[0]
    assert said[1] == f"there is room again in {tmp_path}"


def test_it_is_not_looked_at_all_the_time(tmp_path: Path) -> None:
    said: list[str] = []
    watch = room.RoomWatch(tmp_path, said.append)
    watch.look()
    with full_disk():
        watch.look()
    assert said == []
