"""Image files of every kind that people have: what they become, and what is said about those that are damaged."""

import numpy as np
import pytest
import torch
from PIL import Image

from fedlab.data.digits import datasets, image_files
from fedlab.data.digits.image_files import load_image_files
from fedlab.errors import DataError


def save(path, pixels, mode=None, **options):
    """Write pixels, an array or an image, to a file; gives the path back."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def stroke(height=48, width=48, ink=255, ground=0):
    """A bright bar on the left of a dark square: (height, width), uint8."""
    pixels = np.full((height, width), ground, np.uint8)
    pixels[height // 8 : -height // 8, width // 8 : width // 3] = ink
    return pixels


def left_of_right(image):
    """Mean lightness of the left half less that of the right one."""
    return float(image[..., :16].float().mean() - image[..., 16:].float().mean())


# What comes out


@pytest.mark.parametrize("domain", ["optdigits", "synthdigits"])
def test_the_sets_own_images_come_out_of_png_files_bit_by_bit(tmp_path, domain):
    x = datasets.load_digits(domain, "test").columns["x"][:20]
    paths = [save(tmp_path / f"{n}.png", image.permute(1, 2, 0).numpy()) for n, image in enumerate(x)]
    assert torch.equal(load_image_files(paths), x)
    assert torch.equal(load_image_files(paths[::-1]), x.flip(0))  # the order is the caller's


def test_small_scans_are_treated_as_the_sets_are(tmp_path):
    """MNIST's 28 x 28 are padded to the bit; optdigits' 8 x 8 are enlarged by the same filter, within its rounding."""
    mnist = datasets.load_digits("mnist", "test").columns["x"][:5]
    paths = [save(tmp_path / f"{n}.png", image[0, 2:30, 2:30].numpy()) for n, image in enumerate(mnist)]
    assert torch.equal(load_image_files(paths), mnist)
    from sklearn.datasets import load_digits

    small = np.rint(load_digits().images[:5] * (255 / 16)).astype(np.uint8)  # (5, 8, 8)
    paths = [save(tmp_path / f"small-{n}.png", image) for n, image in enumerate(small)]
    assert (load_image_files(paths).int() - datasets._to_canvas(small).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (28, 32), (27, 27), (33, 32), (100, 20), (1, 500), (641, 480)])
@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_every_size_becomes_one_shape(tmp_path, size, ending):
    (x,) = load_image_files([save(tmp_path / f"a{ending}", np.full((size[1], size[0]), 200))])
    assert x.shape == (3, 32, 32)
    assert x.dtype == torch.uint8
    assert x.is_contiguous()
    assert (x.int() - 200).abs().max() <= 3  # the padding takes the color of the border


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "RGB", "CMYK"])
def test_every_mode_shows_the_same_stroke(tmp_path, mode):
    expected = load_image_files([save(tmp_path / "gray.png", stroke())])
    ending = "jpg" if mode == "CMYK" else "png"
    x = load_image_files([save(tmp_path / f"a.{ending}", stroke(), mode)])
    assert (x.int() - expected.int()).abs().max() <= (12 if mode == "CMYK" else 0)


def test_colors_stay_colors(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[..., 0] = 250
    for path in (save(tmp_path / "a.png", pixels), save(tmp_path / "b.png", Image.fromarray(pixels).quantize(4))):
        assert load_image_files([path])[0].float().mean((1, 2)).tolist() == [250, 0, 0]


def test_sixteen_bits_become_eight(tmp_path):
    values = (stroke().astype(np.uint16) * 257) // 2  # 0 and 32767
    path = tmp_path / "deep.png"
    Image.fromarray(values).save(path)
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    assert torch.equal(load_image_files([path]), load_image_files([save(tmp_path / "flat.png", stroke(ink=127))]))


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 1), (8, 3)])
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_photographs_are_turned_upright(tmp_path, orientation, turned, ending):
    """A camera that is held sideways stores the picture turned and notes how to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{ending}", np.rot90(stroke(60, 40), turned).copy(), exif=exif, quality=95)
    upright = load_image_files([save(tmp_path / f"upright.{ending}", stroke(60, 40), quality=95)])
    assert (load_image_files([path]).int() - upright.int()).abs().max() <= 12
    assert left_of_right(upright) > 20


@pytest.mark.parametrize(("ink", "ground"), [((255, 255, 255), 0), ((0, 0, 0), 255), ((20, 20, 90), 255)])
def test_transparent_pixels_take_the_ground_on_which_ink_shows(tmp_path, ink, ground):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[8:24, 12:20] = (*ink, 255)
    (x,) = load_image_files([save(tmp_path / "a.png", pixels)])
    assert x[:, 0, 0].tolist() == [ground] * 3
    assert x[:, 16, 16].tolist() == list(ink)


def test_white_on_black_with_clear_corners_stays_white_on_black(tmp_path):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[8:24, 12:20, :3] = 255
    pixels[:3, :3] = 0
    assert load_image_files([save(tmp_path / "a.png", pixels)])[0, :, 0, 0].tolist() == [0, 0, 0]


def test_a_palette_and_gray_with_a_clear_color_are_transparent(tmp_path):
    for mode in ("P", "L"):
        image = Image.fromarray(stroke(32, 32, ink=255, ground=60)).convert(mode)
        clear = image.getpixel((0, 0))
        assert load_image_files([save(tmp_path / f"{mode}.png", image, transparency=clear)])[0, :, 0, 0].tolist() == [
            0,
            0,
            0,
        ]


def test_the_aspect_ratio_is_kept_and_the_border_continued(tmp_path):
    (scan,) = load_image_files([save(tmp_path / "a.png", stroke(128, 64, ink=0, ground=240))])  # black on paper
    assert torch.equal(scan[0, 0], torch.full((32,), 240, dtype=torch.uint8))
    assert (scan[0, :, :8] == 240).all() and (scan[0, :, 24:] == 240).all()
    rows, columns = torch.where(scan[0] < 128)
    assert 20 <= rows.max() - rows.min() + 1 <= 26
    assert 8 < columns.min() < columns.max() < 16
    (gray,) = load_image_files([save(tmp_path / "b.png", stroke(128, 64))])
    assert gray[0, :, :8].max() == gray[0, :, 24:].max() == 0


def test_fine_patterns_are_averaged_not_sampled(tmp_path):
    pixels = np.indices((640, 640)).sum(0) % 2 * 255
    (x,) = load_image_files([save(tmp_path / "a.png", pixels)])
    assert (x.int() - 127).abs().max() <= 2


def test_a_large_photograph_is_decoded_small_to_nearly_the_same_image(tmp_path, monkeypatch):
    path = save(tmp_path / "a.jpg", stroke(2000, 3000), quality=95)
    fast = load_image_files([path])
    monkeypatch.setattr(image_files, "MIN_DECODED", 10**6)  # never smaller
    assert (fast.int() - load_image_files([path]).int()).abs().max() <= 12


def test_many_files_of_many_sizes_are_one_batch(tmp_path):
    paths = [save(tmp_path / f"{n}.png", np.full((n + 1, 2 * n + 1), n)) for n in range(60)]
    x = load_image_files(paths)
    assert x.shape == (60, 3, 32, 32)
    assert x[:, 0, 16, 16].tolist() == list(range(60))


# What is refused


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_truncated_file_is_named(tmp_path, ending, truncate):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80))
    path = save(tmp_path / f"cut.{ending}", noise)
    truncate(path)
    with pytest.raises(DataError, match=rf"image .*cut\.{ending} cannot be read: .*truncated.*; replace it, or"):
        load_image_files([save(tmp_path / "good.png", stroke()), path])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello", "it is none of PNG, JPEG, WEBP"),
        (b"%!PS-Adobe-3.0" + b"\0" * 50, "none of PNG"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.png cannot be read: .*{reason}"):
        load_image_files([path])


def test_damage_inside_a_file_is_named(tmp_path):
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (80, 80)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png cannot be read: .+; replace it"):
        load_image_files([path])


def test_of_several_the_first_is_named_and_all_are_counted(tmp_path):
    good = save(tmp_path / "good.png", stroke())
    bad = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in bad:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"one\.png cannot be read: .*the first of 2 such files among 3; replace it"):
        load_image_files([good, *bad])


def test_missing_files_folders_and_bombs_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"none\.png cannot be read: No such file or directory;"):
        load_image_files([tmp_path / "none.png"])
    with pytest.raises(DataError, match="cannot be read: Is a directory;"):
        load_image_files([tmp_path])
    path = save(tmp_path / "a.png", stroke(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a\.png cannot be read: .*exceeds limit"):
        load_image_files([path])


def test_no_file_at_all_is_refused():
    with pytest.raises(DataError, match="no image to read; name at least one image file"):
        load_image_files([])


def test_pictures_are_told_by_their_names(tmp_path):
    assert all(image_files.is_image_file(tmp_path / name) for name in ("a.png", "b.JPG", "c.JpEg", "d.e.png"))
    assert not any(
        image_files.is_image_file(tmp_path / name) for name in ("a.txt", "._b.png", "png", ".png", "a.png.part")
    )


def bomb(path, mode, side):
    Image.new(mode, (side, side)).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA"])
def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch, mode):
    path = bomb(tmp_path / "bomb.png", mode, 5_100)
    assert path.stat().st_size < 500_000
    monkeypatch.setattr(image_files, "_opaque", None)  # would be called, and fail in another way
    with pytest.raises(DataError, match=r"5,100 x 5,100 pixels; at most 25,000,000 are read"):
        image_files.load_image_files([path])


def test_a_large_photograph_is_decoded_small(tmp_path):
    Image.new("RGB", (6_000, 6_000), "white").save(tmp_path / "photo.jpg")
    assert image_files.load_image_files([tmp_path / "photo.jpg"]).shape == (1, 3, 32, 32)


def test_large_images_wait_for_each_other(tmp_path, monkeypatch):
    paths = [bomb(tmp_path / f"{number}.png", "L", 2_100) for number in range(4)]
    inside, most = [], []
    opaque = image_files._opaque

    def watched(picture):
        inside.append(picture)
        most.append(len(inside))
        found = opaque(picture)
        inside.pop()
        return found

    monkeypatch.setattr(image_files, "_opaque", watched)
    image_files.load_image_files(paths)
    assert most == [1, 1, 1, 1]
