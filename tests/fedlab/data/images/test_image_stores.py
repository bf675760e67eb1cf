"""Stores of images: the same pixels from files and from memory, read a batch at a time."""

from __future__ import annotations

import pytest
import torch

from fedlab.data.images import image_stores
from fedlab.data.images.image_stores import FileStore, MemoryStore, content_key, lazy_dataset, load_files
from fedlab.data.images.photo_files import examine, load_photo
from fedlab.errors import DataError
from fedlab.seeds import seeded
from photos import write_photo


@pytest.fixture
def paths(tmp_path):
    return [write_photo(tmp_path / f"{number}.png", (40 * number, 90, 200), number) for number in range(5)]


@pytest.fixture
def store(paths):
    return FileStore(paths, [examine(path)[0] for path in paths], 16)


def test_files_are_read_by_number_in_any_order_and_twice(store, paths):
    found = store.pixels([3, 0, 3])
    assert found.shape == (3, 3, 16, 16) and found.dtype == torch.uint8
    assert torch.equal(found[0], torch.from_numpy(load_photo(paths[3], 16).copy()).permute(2, 0, 1))
    assert torch.equal(found[0], found[2]) and torch.equal(store.pixels([0])[0], found[1])
    assert torch.equal(store.select([3, 1]).pixels([0]), found[:1])


def test_what_does_not_fit_into_memory_is_decoded_again(store, monkeypatch):
    monkeypatch.setattr(image_stores, "MAX_MEMORY", 2 * 3 * 16 * 16)
    first = store.pixels(range(5))
    assert len(store._known) == 2
    assert torch.equal(store.pixels(range(5)), first)


def test_a_file_that_is_damaged_meanwhile_is_an_error_with_its_name(store, paths):
    paths[2].write_bytes(b"bad")
    with pytest.raises(DataError, match=r"image .*2\.png cannot be read: it is none of"):
        store.pixels([0, 2])
    paths[4].write_bytes(b"bad")
    with pytest.raises(DataError, match=r"2\.png .* the first of 2 such files among 5"):
        load_files(paths, 16)


def test_images_in_memory_are_enlarged_when_they_are_read():
    x = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    store = MemoryStore(x, 8)
    assert torch.equal(store.pixels([2, 1]), x[[2, 1]])
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    assert (MemoryStore(flat, 24).pixels([0]) == 77).all()
    assert MemoryStore(x, 24).pixels([0, 1]).shape == (2, 3, 24, 24)
    assert torch.equal(MemoryStore(x, 8).select([3]).pixels([0])[0], x[3])


def test_names_and_keys_follow_the_content():
    x = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    one, other = MemoryStore(x, 8), MemoryStore(x.flip(0), 8)
    assert torch.equal(one.names, other.names.flip(0)) and len(set(one.names.tolist())) == 4
    assert len({content_key(one), content_key(other), content_key(MemoryStore(x, 16))}) == 3
    assert content_key(one) == content_key(MemoryStore(x.clone(), 8))


def test_a_lazy_data_set_holds_names_and_reads_batches(store):
    data = lazy_dataset(store, torch.tensor([4, 1, 2]), {"y": torch.tensor([1, 0, 1])})
    assert len(data) == 3 and data.columns["x"].shape == (3,)
    batch = data[torch.tensor([2, 0])]
    assert torch.equal(batch["y"], torch.tensor([1, 1]))
    torch.testing.assert_close(batch["x"], store.pixels([2, 4]).float() / 127.5 - 1)
    assert data[0]["x"].shape == (3, 16, 16) and data[:2]["x"].shape == (2, 3, 16, 16)
    assert torch.equal(data.select(torch.tensor([1])).subsample(1)[:]["x"], data[1:2]["x"])
    with seeded("view"):
        viewed = lazy_dataset(store, torch.tensor([4]), {}, lambda x: x + torch.rand(()))[:]
    assert not torch.equal(viewed["x"], data[:1]["x"])
