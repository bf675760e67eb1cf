"""Files of every kind and damage: what a person sees comes out, or a reason."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from fedlab.data.images import photo_files
from fedlab.data.images.photo_files import examine, is_image_file, load_photo, try_photo

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def halves(mode="RGB", size=(40, 40)):
    """Red on the left, green on the right."""
    picture = Image.new("RGB", size, RED)
    picture.paste(GREEN, (size[0] // 2, 0, *size))
    return picture.convert(mode)


def near(pixel, color, within=12):
    return np.abs(pixel.astype(int) - np.array(color)).max() <= within


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.png", "RGB", {}),
        ("a.PNG", "P", {}),
        ("a.jpg", "CMYK", {"quality": 95}),
        ("a.JPEG", "RGB", {"quality": 95}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.gif", "P", {}),
        ("a.bmp", "RGB", {}),
        ("a.tiff", "RGB", {}),
        ("a.tif", "CMYK", {}),
        ("a.png", "RGBA", {}),
    ],
)
def test_every_kind_and_mode_shows_its_colors(tmp_path, name, mode, options):
    path = tmp_path / name
    halves(mode).save(path, **options)
    found = load_photo(path, 16)
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
    assert near(found[8, 2], RED, 30) and near(found[8, 13], GREEN, 30)
    assert is_image_file(path)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    halves().save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = load_photo(tmp_path / "a.jpg", 16)
    assert near(found[8, 2], GREEN, 30) and near(found[8, 13], RED, 30)


def test_the_middle_square_is_taken_of_wide_and_of_high_images(tmp_path):
    wide = Image.new("RGB", (90, 30), "black")
    wide.paste(RED, (30, 0, 60, 30))
    wide.save(tmp_path / "wide.png")
    wide.rotate(90, expand=True).save(tmp_path / "high.png")
    for name in ("wide.png", "high.png"):
        found = load_photo(tmp_path / name, 16)
        assert near(found.reshape(-1, 3).mean(0), RED, 25)
    Image.new("RGB", (5000, 1), RED).save(tmp_path / "line.png")
    assert near(load_photo(tmp_path / "line.png", 16)[0, 0], RED)


def test_transparency_is_white_paper(tmp_path):
    picture = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    picture.save(tmp_path / "a.png")
    assert (load_photo(tmp_path / "a.png", 8) == 255).all()
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([9, 9, 9, 255, 0, 0])
    palette.save(tmp_path / "b.png", transparency=0)
    assert (load_photo(tmp_path / "b.png", 8) == 255).all()
    Image.new("LA", (20, 20), (0, 128)).save(tmp_path / "c.png")
    assert near(load_photo(tmp_path / "c.png", 8)[0, 0], (127, 127, 127), 2)


def test_gray_of_sixteen_bits_and_floats_keep_their_brightness(tmp_path):
    ramp = np.array([[0, 32768, 65535, 65535]] * 4, dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        found = load_photo(tmp_path / name, 4)
        assert found[0, 0, 0] < 20 and abs(int(found[0, 1, 0]) - 128) < 30 and found[0, 3, 0] > 240
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "f.tif")
    assert near(load_photo(tmp_path / "f.tif", 4)[0, 0], (128,) * 3, 1)
    Image.fromarray(np.full((4, 4), 51.0, np.float32)).save(tmp_path / "g.tif")
    assert near(load_photo(tmp_path / "g.tif", 4)[0, 0], (51,) * 3, 1)


def test_a_camera_s_file_of_several_pictures_is_its_first(tmp_path):
    halves().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (40, 40), WHITE)])
    assert near(load_photo(tmp_path / "a.jpg", 16)[8, 2], RED, 30)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff"])
def test_of_an_animation_or_of_pages_the_first_is_taken(tmp_path, name):
    first, second = Image.new("RGB", (20, 20), RED), Image.new("RGB", (20, 20), GREEN)
    first.save(tmp_path / name, save_all=True, append_images=[second])
    assert near(load_photo(tmp_path / name, 8)[4, 4], RED, 30)


def test_the_content_counts_and_not_the_name(tmp_path):
    halves().save(tmp_path / "a.jpg", "PNG")
    assert near(load_photo(tmp_path / "a.jpg", 16)[8, 2], RED)


def damaged(tmp_path, what):
    path = tmp_path / "a.jpg"
    stream = io.BytesIO()
    Image.effect_noise((200, 200), 90).convert("RGB").save(stream, "JPEG")
    content = stream.getvalue()
    path.write_bytes(
        {"torn": content[: len(content) // 2], "empty": b"", "text": b"no image", "head": content[:30]}[what]
    )
    return path


@pytest.mark.parametrize(
    ("what", "reason"),
    [("torn", "truncated"), ("empty", "it is empty"), ("text", "it is none of PNG, JPEG"), ("head", "")],
)
def test_a_damaged_file_has_a_reason(tmp_path, what, reason):
    path = damaged(tmp_path, what)
    found = try_photo(path, 16)
    assert isinstance(found, str) and found and reason in found
    assert examine(path) == (hashlib.sha256(path.read_bytes()).hexdigest(), found)


def test_a_bomb_is_refused_and_a_large_photograph_is_not(tmp_path, monkeypatch):
    halves(size=(60, 60)).save(tmp_path / "a.png")
    monkeypatch.setattr(photo_files, "MAX_PIXELS", 3600)
    assert not isinstance(try_photo(tmp_path / "a.png", 8), str)
    monkeypatch.setattr(photo_files, "MAX_PIXELS", 3599)
    assert "it has 60 x 60 pixels; at most 3,599 are read" in try_photo(tmp_path / "a.png", 8)


def test_examining_gives_the_hash_and_no_reason_for_a_good_file(tmp_path):
    halves().save(tmp_path / "a.png")
    assert examine(tmp_path / "a.png") == (hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest(), "")
    (tmp_path / "b.heic").write_bytes(b"something")
    assert examine(tmp_path / "b.heic")[1].startswith("HEIC files are not read here; save it as JPEG")
    assert examine(tmp_path / "none.jpg") == ("", "No such file or directory")


def test_hidden_files_and_other_kinds_are_no_images(tmp_path):
    names = ("a.JPG", "b.heic", "._a.jpg", "notes.txt")
    assert [is_image_file(tmp_path / name) for name in names] == [True, False, False, False]
    (tmp_path / "notes.txt").touch()
    assert examine(tmp_path / "notes.txt") == ("", "it is no image by its name")
