"""Sets of images: what ships, the cut into two parts, and what is refused."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import cifar

from fedlab.data.digits import datasets
from fedlab.data.images import image_sets
from fedlab.data.images.image_sets import UNKNOWN
from fedlab.errors import DataError


def test_omniglot_ships_with_16_drawings_to_learn_and_4_to_validate_of_each_character():
    base, held = (
        image_sets.load_image_set("omniglot", None),
        image_sets.load_image_set("omniglot", None, validation=True),
    )
    assert base.x.shape == (3248, 1, 32, 32) and held.x.shape == (812, 1, 32, 32)
    assert torch.bincount(base.y).tolist() == [16] * 203 and torch.bincount(held.y).tolist() == [4] * 203
    assert base.x.dtype == torch.uint8 and (base.x.flatten(1).max(1).values == 255).all()


def test_strokes_are_bright_on_dark_as_in_digits():
    for name in ("omniglot", "omniglot_heldout", "mnist"):
        x = image_sets.load_image_set(name, None).x
        assert float((x < 64).float().mean()) > 0.7, name


def test_held_out_characters_are_in_no_base():
    base = {image.numpy().tobytes() for image in image_sets.load_image_set("omniglot", None).x}
    held = {image.numpy().tobytes() for image in image_sets.load_image_set("omniglot_heldout", None).x}
    assert len(held) > 700 and not base & held


@pytest.mark.parametrize("name", ["omniglot_heldout", "usps", "optdigits"])
def test_no_image_is_in_both_parts(name):
    images = image_sets.load_image_set(name, None)
    bare, labeled = image_sets.split_unlabeled(images.y, 0.2)
    assert not set(bare.tolist()) & set(labeled.tolist())
    assert len(bare) / (len(bare) + len(labeled)) == pytest.approx(0.2, abs=0.005)
    assert (images.y[labeled] != UNKNOWN).all()


def test_a_set_with_labels_is_cut_whole_and_always_the_same_way():
    y = torch.arange(5).repeat(20)
    bare, labeled = image_sets.split_unlabeled(y, 0.3)
    assert sorted([*bare.tolist(), *labeled.tolist()]) == list(range(100)) and len(bare) == 30
    torch.manual_seed(9)
    assert torch.equal(image_sets.split_unlabeled(y, 0.3)[0], bare)


def test_what_ships_without_labels_can_only_be_the_unlabeled_part():
    y = torch.tensor([UNKNOWN] * 7 + [0, 1] * 8)
    bare, labeled = image_sets.split_unlabeled(y, 0.2)
    assert labeled.tolist() == list(range(7, 23))
    assert len(bare) == 4 and set(bare.tolist()) <= set(range(7))
    assert len(image_sets.split_unlabeled(y, 0.9)[0]) == 7  # there are no more


def test_gray_digits_are_one_channel_and_color_ones_three():
    assert image_sets.load_image_set("usps", None).x.shape[1] == 1
    assert image_sets.load_image_set("mnist_m", None).x.shape[1] == 3
    domain = image_sets.load_image_set("usps", None)
    test = datasets.load_digits("usps", "test", None).columns
    assert torch.equal(domain.x[-len(test["y"]) :], test["x"][:, :1])
    assert torch.equal(domain.y[-len(test["y"]) :], test["y"])


def jpegs(path, labels):
    files = []
    for value in labels:
        file = io.BytesIO()
        Image.new("RGB", (64, 64), (40 * value, 255 - 40 * value, 0)).save(file, "JPEG", quality=95)
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, files)])
    path.parent.mkdir(parents=True)
    np.savez(path, buf=np.concatenate(files), off=offsets, y=np.array(labels, np.int16), classes=np.array(["a"] * 7))


def test_a_file_of_jpegs_is_decoded_in_order_and_resized(tmp_path):
    jpegs(tmp_path / "eurosat" / "eurosat_64.npz", [3, 0, 6])
    images = image_sets.load_image_set("eurosat", tmp_path)
    assert images.x.shape == (3, 3, 64, 64) and images.y.tolist() == [3, 0, 6]
    assert (images.x[:, 0].float().mean((1, 2)) - torch.tensor([120.0, 0.0, 240.0])).abs().max() < 4
    small = image_sets.load_image_set("eurosat", tmp_path, size=32)
    assert small.x.shape == (3, 3, 32, 32) and small.x.dtype == torch.uint8


def test_a_file_is_decoded_once_however_it_is_asked_for(tmp_path, monkeypatch):
    decoded, read = [], image_sets._read_jpegs
    monkeypatch.setattr(image_sets, "_read_jpegs", lambda path: decoded.append(path) or read(path))
    jpegs(tmp_path / "eurosat" / "eurosat_64.npz", [3, 0, 6])
    first = image_sets.load_image_set("eurosat", tmp_path)
    assert image_sets.load_image_set("eurosat", tmp_path, False, size=0) is first
    assert image_sets.load_image_set(name="eurosat", root=tmp_path, validation=False) is first and len(decoded) == 1


def test_what_is_missing_or_damaged_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="no set of images 'eurosatt'; did you mean 'eurosat'"):
        image_sets.load_image_set("eurosatt", None)
    with pytest.raises(DataError, match=r"eurosat does not ship with fedlab: expected FOLDER/eurosat/.*set data.root"):
        image_sets.load_image_set("eurosat", None)
    with pytest.raises(DataError, match="usps has no validation part"):
        image_sets.load_image_set("usps", None, validation=True)
    (tmp_path / "eurosat").mkdir()
    (tmp_path / "eurosat" / "eurosat_64.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="eurosat cannot be read"):
        image_sets.load_image_set("eurosat", tmp_path)


def test_cifar10_is_read_as_torchvision_lays_it_out_or_as_jpegs(tmp_path, monkeypatch):
    folder = tmp_path / "published" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]):
        images = {"data": np.full((2, 3072), 10 * number, np.uint8), "labels": [number, 9]}
        (folder / name).write_bytes(pickle.dumps(images))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.raises(DataError, match="cifar10 cannot be read .*corrupted"):
        image_sets.load_image_set("cifar10", folder.parent)
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # it knows its files by their sums
    images = image_sets.load_image_set("cifar10", folder.parent)
    assert images.x.shape == (10, 3, 32, 32) and images.x[:, 2, 9, 9].tolist() == [0, 0, 10, 10, 20, 20, 30, 30, 40, 40]
    assert images.y.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert image_sets.load_image_set("cifar10", folder.parent, validation=True).y.tolist() == [5, 9]

    jpegs(tmp_path / "cifar10" / "train_jpeg.npz", [3, 0])
    with pytest.raises(DataError, match=r"expected .*test_jpeg.npz, or torchvision's cifar-10-batches-py/ beside its"):
        image_sets.load_image_set("cifar10", tmp_path)
    (tmp_path / "cifar10" / "test_jpeg.npz").write_bytes((tmp_path / "cifar10" / "train_jpeg.npz").read_bytes())
    assert image_sets.load_image_set("cifar10", tmp_path).y.tolist() == [3, 0]
