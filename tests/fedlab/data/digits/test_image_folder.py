"""A client's own folder: what is trained on, what is tested on, and what is said when it is not as it should be."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fedlab.data.digits import folder_files, image_files
from fedlab.data.digits.folder_files import SkippedFilesWarning
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
    (tmp_path / "Thumbs.db").write_text("a desktop's")
    (tmp_path / "folder.png").mkdir()
    assert find_image_files(tmp_path) == [tmp_path / "a.png"]


def test_what_is_no_image_is_counted_by_kind_and_the_first_is_named(tmp_path):
    put(tmp_path, "a.png", "b.jpg")
    for name in ("scan.heic", "x/SCAN.HEIC", "notes.txt", *(f"z.{kind}" for kind in "abcd")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    counts = (
        r"9 of 11 files of .* not used \(2 \.heic, 1 \.a, 1 \.b, 1 \.c, 1 \.d and 3 kinds more\), the first is gone;"
    )
    with pytest.warns(SkippedFilesWarning, match=counts):
        assert len(load_image_folder(tmp_path, "train")) == 2


@pytest.mark.parametrize("suffix", image_files.SUFFIXES)
def test_every_format_is_read_in_capitals_too(tmp_path, suffix):
    if suffix == ".avif" and "AVIF" not in image_files.readable_formats():
        pytest.skip("this Pillow has no AVIF")
    kind = "PNG" if suffix == ".apng" else Image.registered_extensions()[suffix]
    Image.new("1" if suffix == ".pbm" else "RGB", (32, 32), "white").save(tmp_path / f"a{suffix.upper()}", kind)
    assert values(load_image_folder(tmp_path, "train")) == [255]


# Links


def test_linked_files_and_folders_are_used_as_if_they_were_there(tmp_path):
    put(tmp_path / "disk", *(f"{number}.png" for number in range(3)), value=10)
    put(tmp_path / "mine", "a.png", "b.png")
    (tmp_path / "mine" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "mine" / "c.png").symlink_to(tmp_path / "disk" / "0.png")
    assert values(load_image_folder(tmp_path / "mine", "train")) == [0, 1, 10, 10, 11, 12]


def test_a_folder_of_links_alone_is_not_empty(tmp_path):
    put(tmp_path / "disk", "a.png", "deep/b.png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link").symlink_to("../disk")
    assert len(find_image_files(tmp_path / "mine")) == 2


def test_links_in_a_loop_or_twice_to_one_folder_do_not_repeat_images(tmp_path):
    put(tmp_path / "real", "a.png", "sub/b.png")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "sub" / "up").symlink_to("..")
    (tmp_path / "real" / "again").symlink_to("sub")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert find_image_files(tmp_path / "link") == [tmp_path / "link/a.png", tmp_path / "link/sub/b.png"]


def test_a_linked_test_folder_is_for_testing_and_its_target_is_not_trained_on(tmp_path):
    put(tmp_path / "mine", "a.png", "holdout/3/b.png")
    (tmp_path / "mine" / "test").symlink_to("holdout")
    assert values(load_image_folder(tmp_path / "mine", "train")) == [0]
    assert load_image_folder(tmp_path / "mine", "test").columns["y"].tolist() == [3]


def test_the_test_folder_may_be_written_in_capitals_but_not_twice(tmp_path):
    put(tmp_path, "a.png", "Test/3/b.png")
    assert values(load_image_folder(tmp_path, "train")) == [0]
    assert load_image_folder(tmp_path, "test").columns["y"].tolist() == [3]
    put(tmp_path, "test/4/c.png")
    with pytest.raises(DataError, match="has 2 folders of test images, Test and test; make them one"):
        load_image_folder(tmp_path, "train")


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
        (lambda path: None, "is not there; give a folder that holds images"),
        (lambda path: path.write_text("x"), "is a file and no folder; give a folder"),
        (lambda path: path.mkdir(), "holds no image, it is empty; put images into it"),
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
    with pytest.raises(DataError, match=r"holds no image, only 4 files of other kinds \(2 \.heic, 1 \.txt, 1 README\)"):
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
    with pytest.raises(DataError, match=r"test holds no image to test on; .*sub-folders 0 to 9, or delete it"):
        load_image_folder(tmp_path, "test")


def test_an_unreadable_image_is_named(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image .*b\.jpg cannot be read: it is none of PNG, JPEG"):
        load_image_folder(tmp_path, "train")
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"c\.png cannot be read: No such file"):
        load_image_folder(tmp_path, "train")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a.png", "locked/b.png")
    error = PermissionError(13, "Permission denied", str(tmp_path / "locked"))

    def scandir(path):  # the tests may run as root, whom nothing is denied
        if path.name == "locked":
            raise error
        return scan(path)

    scan = os.scandir
    monkeypatch.setattr(folder_files.os, "scandir", scandir)
    with pytest.raises(DataError, match="locked cannot be listed: .*permission denied; change its permissions"):
        find_image_files(tmp_path)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="no split 'trian' of a folder of images; did you mean 'train'"):
        load_image_folder(put(tmp_path, "a.png"), "trian")
