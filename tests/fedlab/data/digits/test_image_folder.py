"""A client's own folder: what is trained on, what is tested on, and what is said when it is not as it should be."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fedlab.data.digits import image_files
from fedlab.data.digits import image_folder as folders
from fedlab.data.digits.image_folder import find_image_files, load_image_folder
from fedlab.errors import DataError


def put(root, *names, value=0, size=32):
    """Gray squares, each a little brighter than the one before, at the given paths below a folder."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size, size), value + number, np.uint8)).save(path)
    return root


def values(examples):
    return examples.columns["x"][:, 0, 0, 0].tolist()


# Layout


def test_every_image_below_the_folder_is_for_training_without_labels(tmp_path):
    put(tmp_path, "b.png", "a.JPEG", "7/deep/er/c.png", "0/d.png", "tests/e.png", "more/test/3/f.png")
    examples = load_image_folder(tmp_path, "train")
    assert list(examples.columns) == ["x"]
    assert values(examples) == [3, 2, 1, 0, 5, 4]  # by path: 0/ 7/ a b more tests
    assert list(examples[:2]) == ["x"]
    assert examples[:2]["x"].dtype == torch.float32
    assert examples[:1]["x"].unique().item() == pytest.approx(3 / 127.5 - 1)


def test_the_test_folder_is_for_testing_and_its_sub_folders_are_the_classes(tmp_path):
    put(tmp_path, "a.png", "test/3/x.png", "test/3/deeper/y.png", "test/0/z.jpg")
    assert values(load_image_folder(tmp_path, "train")) == [0]
    test = load_image_folder(tmp_path, "test")
    assert values(test) == [3, 2, 1]
    assert test.columns["y"].tolist() == [0, 3, 3]
    assert test.columns["y"].dtype == torch.int64


def test_without_a_test_folder_the_training_images_come_again_without_labels(tmp_path):
    put(tmp_path, "3/a.png", "4/b.png")
    test = load_image_folder(tmp_path, "test")
    assert list(test.columns) == ["x"]
    assert torch.equal(test.columns["x"], load_image_folder(tmp_path, "train").columns["x"])


def test_hidden_and_other_files_are_left_out(tmp_path):
    put(tmp_path, "a.png", "._a.png", ".thumbnails/b.png")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    assert find_image_files(tmp_path) == [tmp_path / "a.png"]


def test_a_linked_folder_is_read_and_links_inside_are_not_followed(tmp_path):
    put(tmp_path / "real", "a.png")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(load_image_folder(tmp_path / "link", "train")) == 1


def test_sizes_and_kinds_may_be_mixed(tmp_path):
    put(tmp_path, "a.png", value=10, size=8)
    put(tmp_path, "b.jpg", value=90, size=300)
    Image.new("RGBA", (50, 70), (200, 200, 200, 255)).save(tmp_path / "c.png")
    assert values(load_image_folder(tmp_path, "train")) == [10, 90, 200]


# Reading once


def test_a_folder_is_decoded_once_until_a_file_changes(tmp_path, monkeypatch):
    decoded = []
    original = image_files.load_image_files
    monkeypatch.setattr(image_files, "load_image_files", lambda paths: decoded.append(len(paths)) or original(paths))
    put(tmp_path, "a.png", "deep/b.png", "test/1/c.png")
    for _ in range(3):
        load_image_folder(tmp_path, "train")
    assert decoded == [2]
    put(tmp_path, "deep/b.png", value=77)
    os.utime(tmp_path / "deep" / "b.png", ns=(1, 1))
    assert values(load_image_folder(tmp_path, "train")) == [0, 77]
    put(tmp_path, "deep/new.png")
    assert len(load_image_folder(tmp_path, "train")) == 3
    (tmp_path / "a.png").unlink()
    assert len(load_image_folder(tmp_path, "train")) == 2
    assert decoded == [2, 2, 3, 2]


def test_nothing_is_written_into_the_folder(tmp_path):
    put(tmp_path, "a.png", "test/1/c.png")
    before = sorted(tmp_path.rglob("*"))
    load_image_folder(tmp_path, "train"), load_image_folder(tmp_path, "test")
    assert sorted(tmp_path.rglob("*")) == before


# What is refused


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "is not there; give a folder that holds PNG or JPEG files"),
        (lambda path: path.write_text("x"), "is a file and no folder; give a folder"),
        (lambda path: path.mkdir(), "holds no PNG or JPEG file, it is empty; put images into it"),
    ],
)
def test_what_is_no_folder_of_images_is_refused(tmp_path, make, sentence):
    path = tmp_path / "mine"
    make(path)
    for split in ("train", "test"):
        with pytest.raises(DataError, match=f"mine {sentence}"):
            load_image_folder(path, split)


def test_a_folder_of_other_files_says_what_is_in_it(tmp_path):
    for name in ("a.heic", "b.HEIC", "c.txt", "README"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"holds no PNG or JPEG file, only 4 of other kinds \(\.heic, \.txt, README\)"):
        find_image_files(tmp_path)


@pytest.mark.parametrize("name", ["seven", "10", "07", "-1"])
def test_a_class_of_another_name_is_refused(tmp_path, name):
    put(tmp_path, "a.png", f"test/{name}/b.png", "test/1/c.png")
    for split in ("train", "test"):  # whoever only trains must know as well
        with pytest.raises(DataError, match=rf"b\.png lies in a folder named '{name}'; expected .*test/0 to 9.*rename"):
            load_image_folder(tmp_path, split)


def test_a_test_image_without_class_is_refused(tmp_path):
    put(tmp_path, "a.png", "test/b.png")
    with pytest.raises(DataError, match=r"test image .*b\.png lies in no folder of a class; expected .*test/0 to 9"):
        load_image_folder(tmp_path, "train")


def test_test_images_alone_and_an_empty_test_folder_are_refused(tmp_path):
    put(tmp_path, "test/1/a.png")
    with pytest.raises(
        DataError, match="every image of .* lies in its sub-folder test/.*put those that the client may"
    ):
        load_image_folder(tmp_path, "train")
    shutil.move(tmp_path / "test" / "1" / "a.png", tmp_path)
    with pytest.raises(
        DataError, match=r"test holds no PNG or JPEG file to test on; .*sub-folders 0 to 9, or delete it"
    ):
        load_image_folder(tmp_path, "test")


def test_an_unreadable_image_is_named(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image .*b\.jpg cannot be read: it is neither PNG nor JPEG"):
        load_image_folder(tmp_path, "train")
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"c\.png cannot be read: No such file"):
        load_image_folder(tmp_path, "train")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a.png", "locked/b.png")
    error = PermissionError(13, "Permission denied", str(tmp_path / "locked"))

    def walk(top, onerror):  # what os.walk does there; the tests may run as root, whom nothing is denied
        onerror(error)

    monkeypatch.setattr(folders.os, "walk", walk)
    with pytest.raises(DataError, match="locked cannot be listed: Permission denied; make it readable"):
        find_image_files(tmp_path)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="no split 'trian' of a folder of images; did you mean 'train'"):
        load_image_folder(put(tmp_path, "a.png"), "trian")
