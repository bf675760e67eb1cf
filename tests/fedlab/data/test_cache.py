"""The user's cache folder: where it is, and that one that cannot be written is no error."""

from __future__ import annotations

from fedlab.data.cache import cache_folder, cache_key, try_write


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    assert not try_write(tmp_path / "file" / "kept.npz", b"content")


def test_the_folder_is_the_users_cache_and_names_depend_on_all(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("molecules") == tmp_path / "fedlab" / "molecules"
    assert len({cache_key("a", "b"), cache_key("ab"), cache_key("b", "a")}) == 3
