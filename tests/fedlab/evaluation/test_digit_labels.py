"""The classifier that ships: that it reads, what it is given, and a file that is damaged."""

from __future__ import annotations

import pytest
import torch

from fedlab.data.digits import datasets
from fedlab.errors import DataError
from fedlab.evaluation import digit_labels
from fedlab.models.digit_classifier import DigitClassifier, preprocess


@pytest.mark.parametrize(("domain", "at_least"), [("mnist", 0.97), ("usps", 0.93), ("mnist_m", 0.7)])
def test_it_reads_held_out_digits_of_every_look(domain, at_least):
    batch = datasets.load_digits(domain, "test").subsample(400)[:]
    features, labels = digit_labels.classify_digits(batch["x"], batch=150)
    assert features.shape == (400, 64)
    assert (labels == batch["y"]).float().mean() > at_least
    assert torch.allclose(digit_labels.classify_digits(batch["x"][:7])[0], features[:7], atol=1e-5)


def test_images_are_read_gray_and_cut():
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.allclose(preprocess(x), x[..., 2:-2, 2:-2].mean(1, keepdim=True))
    gray = torch.rand(2, 1, 28, 28)
    assert torch.equal(preprocess(gray), gray)
    flat = preprocess(torch.full((2, 1, 16, 16), 0.25))
    assert flat.shape == (2, 1, 28, 28)
    assert torch.allclose(flat, torch.tensor(0.25))


def test_loading_it_draws_from_nobodys_stream():
    digit_labels.load_classifier.cache_clear()
    before = torch.get_rng_state()
    reader = digit_labels.load_classifier()
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(reader, DigitClassifier)
    assert not reader.training


def test_a_damaged_file_says_so(tmp_path):
    path = tmp_path / "reader.npz"
    path.write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"the digit reader .*reader.npz cannot be read .*; reinstall fedlab"):
        digit_labels.load_classifier(path)
