"""Owners of photographs: the held-out part of a source, and the images of a client."""

from __future__ import annotations

import pytest
import torch

from fedlab.data.images import photo_folders
from fedlab.data.images.image_stores import MemoryStore
from fedlab.data.images.photo_domains import Part, client_part, pacs_part, source_part
from photos import HUES, write_photo, write_photos

CLASSES = tuple(HUES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photo_folders._photos.cache_clear()


def names(part):
    return set(part.store.names[part.rows].tolist())


@pytest.mark.parametrize(("holdout", "tested"), [(0.0, 0), (0.1, 1), (0.5, 3), (0.99, 5)])
def test_a_source_is_split_by_class_by_content_and_never_used_up(tmp_path, holdout, tested):
    source = write_photos(tmp_path) / "source"
    train, test = (source_part(source, CLASSES, split, holdout, 16) for split in ("train", "test"))
    assert torch.bincount(train.labels).tolist() == [6 - tested] * 3
    if not tested:  # then training images are tested on
        assert names(test) == names(train)
        return
    assert torch.bincount(test.labels).tolist() == [tested] * 3 and not names(test) & names(train)
    (source / "apple" / "0.png").rename(source / "apple" / "zzz.png")
    assert names(source_part(source, CLASSES, "test", holdout, 16)) == names(test)


def test_a_folder_named_as_a_class_in_other_letters_is_that_class_unless_two_are(tmp_path):
    write_photo(tmp_path / "a" / "APPLE" / "0.png", (9, 9, 9), 1)
    assert client_part(tmp_path / "a", CLASSES, "test", False, 16).labels.tolist() == [0]
    assert client_part(tmp_path / "a", ("Apple", "apple"), "test", False, 16).labels is None
    assert client_part(tmp_path / "a", ("Apple", "APPLE"), "test", False, 16).labels.tolist() == [1]


def test_a_part_of_some_images_has_a_store_of_its_own():
    x = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    part = Part(MemoryStore(x, 8), torch.arange(1, 10), torch.arange(9))
    some = part.subsample(3)
    assert some.labels.tolist() == [0, 4, 8] and len(some.store.names) == 3
    assert torch.equal(some.store.pixels(some.rows.tolist()), x[[1, 5, 9]])
    assert part.subsample(0) is part and part.subsample(9) is part


def test_pacs_is_enlarged_when_it_is_read():
    part = pacs_part("sketch", "test", False, None, 96)
    assert part.store.pixels([0]).shape == (1, 3, 96, 96) and len(part.labels) == len(part.rows) == 350
    assert pacs_part("sketch", "train", False, None, 96).labels is None
