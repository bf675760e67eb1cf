"""Files of tensors, sound and damaged in every layer of the format, and one that would run code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from fedlab.tensor_files import UnreadableFileError, read_tensors


class Payload:
    """Would make a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_tensors_and_plain_values_come_back(tmp_path):
    torch.save({"a": torch.arange(3), "b": [1, "text"]}, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert found["a"].tolist() == [0, 1, 2] and found["b"] == [1, "text"]


@pytest.mark.parametrize("content", [b"", b"damaged", b"PK\x03\x04 no archive", "half", "payload", "pickle", None])
def test_anything_else_is_one_line_without_torch_s_advice(tmp_path, content):
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "half":
        torch.save(torch.arange(1000), path)
        path.write_bytes(path.read_bytes()[:2000])
    elif content:
        (torch.save if content == "payload" else lambda value, to: to.write_bytes(pickle.dumps(value)))(
            {"a": Payload(tmp_path / "ran")}, path
        )
    with pytest.raises(UnreadableFileError) as raised:
        read_tensors(path)
    said = str(raised.value)
    assert said and "\n" not in said and "weights_only" not in said
    assert not (tmp_path / "ran").exists()
    if content is None:
        assert "no such file" in said
