"""Folders of photographs: what is found, skipped and remembered."""

from __future__ import annotations

import shutil
import warnings

import pytest

from fedlab.data.digits.folder_files import SkippedFilesWarning
from fedlab.data.images import photo_files, photo_folders
from fedlab.data.images.photo_folders import class_folders, find_photos, run_parallel
from fedlab.errors import DataError
from photos import write_photo

RED = (200, 20, 30)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photo_folders._photos.cache_clear()
    return tmp_path / "cache" / "fedlab" / "images"


@pytest.fixture
def folder(tmp_path):
    """Three images at three depths, beside a hidden one and a folder of no images."""
    root = tmp_path / "photos"
    write_photo(root / "b.png", RED, 1)
    write_photo(root / "A" / "c.JPG", RED, 2)
    write_photo(root / "A" / "deep" / "a.png", RED, 3)
    write_photo(root / ".hidden" / "d.png", RED, 4)
    (root / "empty").mkdir()
    return root


def test_images_come_sorted_with_the_folders_that_they_lie_in(folder):
    found = find_photos(folder)
    assert [photo.path.relative_to(folder).as_posix() for photo in found] == ["A/c.JPG", "A/deep/a.png", "b.png"]
    assert [photo.parts for photo in found] == [("A",), ("A", "deep"), ()]
    assert len({photo.sha256 for photo in found}) == 3
    assert class_folders(folder) == ("A", "empty")


def test_damaged_files_are_skipped_and_all_of_them_listed(folder, cache):
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(b"damaged")
    (folder / "z.heic").write_bytes(b"phone")
    (folder / "z.txt").touch()
    with pytest.warns(SkippedFilesWarning, match="7 of 10 files of .*/photos are not used: .*0.jpg: it is none of PNG"):
        assert len(find_photos(folder)) == 3
    (listed,) = (cache / "skipped").iterdir()
    lines = listed.read_text().splitlines()
    assert len(lines) == 8 and lines[-2].endswith("z.heic\tHEIC files are not read here; save it as JPEG or PNG")
    assert lines[-1].endswith("z.txt\tit is no image by its name")
    find_photos(folder)  # said once, or this would be an error


def test_what_was_examined_is_remembered_until_it_changes(folder, cache, monkeypatch):
    first, asked = find_photos(folder), []
    photo_folders._photos.cache_clear()
    monkeypatch.setattr(photo_files, "examine", lambda path: asked.append(path.name) or ("00" * 32, ""))
    assert find_photos(folder) == first and not asked
    write_photo(folder / "b.png", RED, 9, (33, 44))
    assert find_photos(folder)[2].sha256 == "00" * 32 and asked == ["b.png"]


@pytest.mark.parametrize("content", ["", "no json", "[[1]]", '{"a": 1}'])
def test_a_damaged_memory_is_made_again(folder, cache, content):
    first = find_photos(folder)
    (memory,) = (cache / "examined").iterdir()
    memory.write_text(content)
    photo_folders._photos.cache_clear()
    assert find_photos(folder) == first
    assert memory.read_text() != content


def test_a_linked_folder_is_read_once_even_in_a_circle(folder, tmp_path):
    write_photo(tmp_path / "elsewhere" / "x.png", RED, 5)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "A" / "up").symlink_to(folder)
    assert [photo.path.name for photo in find_photos(folder)].count("x.png") == 1
    assert len(find_photos(folder)) == 4


def test_a_link_that_leads_nowhere_is_skipped(folder):
    (folder / "gone.png").symlink_to(folder / "none.png")
    with pytest.warns(SkippedFilesWarning, match="gone.png: No such file"):
        assert len(find_photos(folder)) == 3


def test_a_folder_without_images_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="holds no image that can be used; put photographs into it"):
        find_photos(folder / "empty")
    with pytest.raises(DataError, match="none is not there"):
        find_photos(folder / "none")
    with pytest.raises(DataError, match="is a file and no folder"):
        find_photos(folder / "b.png")
    (folder / "empty" / "a.jpg").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedFilesWarning)
        with pytest.raises(DataError, match=r"holds no image that can be used: .*a\.jpg, it is empty"):
            find_photos(folder / "empty")


def test_nothing_breaks_where_the_cache_cannot_be_written(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (folder / "bad.png").write_bytes(b"bad")
    with pytest.warns(SkippedFilesWarning, match="could not be written"):
        assert len(find_photos(folder)) == 3


@pytest.mark.engine
def test_many_files_are_examined_by_processes_with_the_same_answers(tmp_path):
    source = write_photo(tmp_path / "0.png", RED, 0)
    paths = [source, *(tmp_path / f"{number}.png" for number in range(1, photo_folders.PARALLEL_FILES))]
    for path in paths[1:]:
        shutil.copy(source, path)
    paths[7].write_bytes(b"bad")
    found = run_parallel(photo_files.examine, paths)
    assert found == [photo_files.examine(path) for path in paths]
