"""Cached features: computed once, and again where a file is damaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.data.images import feature_cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache's files, and the list of computations so far."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(feature_cache, "_known", {})
    return tmp_path / "fedlab" / "features"


@pytest.fixture
def ask(cache, monkeypatch):
    calls = []

    def fill(rows):
        calls.append(rows.shape)
        rows[...] = np.arange(rows.size, dtype=np.float32).reshape(rows.shape)

    def get(fresh_process=True, shape=(3, 2)):
        if fresh_process:
            monkeypatch.setattr(feature_cache, "_known", {})
        return feature_cache.get_or_compute("key", shape, fill), len(calls)

    return get


def test_features_are_computed_once_on_a_machine(ask, cache):
    first, calls = ask()
    again, more = ask()
    assert (calls, more) == (1, 1)
    assert torch.equal(first, torch.arange(6.0).view(3, 2)) and torch.equal(first, again)
    assert ask(fresh_process=False)[0] is again
    assert sorted(path.name for path in cache.iterdir()) == [".key.lock", "key.json", "key.npy"]


@pytest.mark.parametrize("damage", ["cut", "flip", "no facts", "no json", "gone", "other"])
def test_a_damaged_file_is_computed_again(ask, cache, damage):
    first = ask()[0].clone()
    file, facts = cache / "key.npy", cache / "key.json"
    content = file.read_bytes()
    {
        "cut": lambda: file.write_bytes(content[:-3]),
        "flip": lambda: file.write_bytes(content[:-1] + bytes([content[-1] ^ 1])),
        "no facts": facts.unlink,
        "no json": lambda: facts.write_text("{"),
        "gone": file.unlink,
        "other": lambda: file.write_bytes(b"a text"),
    }[damage]()
    found, calls = ask()
    assert calls == 2 and torch.equal(found, first)
    assert ask()[1] == 2


def test_another_shape_is_not_what_was_asked_for(ask):
    ask()
    found, calls = ask(shape=(2, 3))
    assert calls == 2 and found.shape == (2, 3)


def test_writing_to_the_features_changes_no_file(ask):
    first = ask()[0]
    first[0] = -1
    assert torch.equal(ask()[0], torch.arange(6.0).view(3, 2))


def test_a_computation_that_fails_leaves_no_file(cache):
    def fill(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feature_cache.get_or_compute("key", (3, 2), fill)
    assert [path.name for path in cache.iterdir()] == [".key.lock"]


def test_without_a_place_to_write_they_are_computed_in_memory(ask, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert torch.equal(ask()[0], torch.arange(6.0).view(3, 2))
