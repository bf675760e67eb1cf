"""What is kept comes back; what is damaged, missing or cannot be written is no error."""

from __future__ import annotations

import pytest
import torch

from fedlab.data.molecules import cache

TEXTS = {"smiles": ("CCO", "", "C#N")}
TENSORS = {"atoms": torch.tensor([[1, 2], [3, 4], [5, 6]])}


def test_columns_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "kept.npz"
    cache.save(path, TEXTS, TENSORS)
    texts, tensors = cache.load(path, ["smiles"], ["atoms"])
    assert texts == TEXTS and torch.equal(tensors["atoms"], TENSORS["atoms"])
    assert [entry.name for entry in path.parent.iterdir()] == ["kept.npz"]


@pytest.mark.parametrize("content", [None, b"", b"half of a file"])
def test_what_cannot_be_read_is_not_there(tmp_path, content):
    path = tmp_path / "kept.npz"
    if content is not None:
        path.write_bytes(content)
    assert cache.load(path, ["smiles"], ["atoms"]) is None


def test_a_torn_or_another_file_is_not_there(tmp_path):
    path = tmp_path / "kept.npz"
    cache.save(path, TEXTS, TENSORS)
    assert cache.load(path, ["scaffolds"], ["atoms"]) is None
    path.write_bytes(path.read_bytes()[:-40])
    assert cache.load(path, ["smiles"], ["atoms"]) is None
