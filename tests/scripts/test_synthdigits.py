"""The generator: reproducible, balanced, legible; what ships can be learned from."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, one_hot

from fedlab.data.digits.datasets import EMBEDDED, load_digits
from scripts import synthdigits
from scripts.synthdigits import FONTS, LIGHTNESS, MIN_CONTRAST, generate


def test_same_seed_same_images():
    images, labels = generate(12, 3)
    again, labels_again = generate(12, 3)
    assert images.shape == (12, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)


def test_other_seed_other_images():
    assert not np.array_equal(generate(5, 3)[0], generate(5, 4)[0])


def test_draws_do_not_touch_the_global_streams():
    np.random.seed(1)
    torch.manual_seed(1)
    generate(3, 0)
    assert np.random.random() == pytest.approx(0.417022004702574)
    state = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(state, torch.rand(1))


@pytest.mark.parametrize("count", [1, 10, 37])
def test_labels_are_balanced_up_to_one(count):
    counts = np.bincount(generate(count, 0)[1], minlength=10)
    assert counts.sum() == count
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("name", FONTS)
def test_every_font_draws_ten_different_digits(name):
    drawn = {bytes(synthdigits._font(name, 40).getmask(str(digit))) for digit in range(10)}
    assert len(drawn) == 10


def test_digit_stands_out_from_every_kind_of_background():
    rng = np.random.default_rng(0)
    for _ in range(200):
        pixels = synthdigits._background(rng).reshape(-1, 3)
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        lightness = synthdigits._readable_color(pixels, rng) @ LIGHTNESS
        darkest, lightest = np.quantile(pixels @ LIGHTNESS, [0.02, 0.98])
        assert lightness <= darkest - MIN_CONTRAST or lightness >= lightest + MIN_CONTRAST


def test_digit_keeps_inside_the_picture():
    rng = np.random.default_rng(0)
    for digit in range(10):
        ink = np.asarray(synthdigits._masks(digit, rng)[0])
        assert ink.max() == 255
        assert ink[[0, -1]].max() == 0
        assert ink[:, [0, -1]].max() == 0


def test_embedded_training_set_is_what_the_generator_draws():
    """Other versions of Pillow and FreeType may shift an edge, and JPEG loses a little: hence close, not equal."""
    with np.load(EMBEDDED / "synthdigits_train.npz") as archive:
        sheet = np.asarray(Image.open(io.BytesIO(archive["sheet"].tobytes())))
    # Labels are drawn first and for the whole set, so the first images need the whole draw's labels.
    labels = load_digits("synthdigits", "train", with_labels=True, upper_bound=True).columns["y"].numpy()
    rng = np.random.default_rng([1409, 0x5D161])
    np.testing.assert_array_equal(labels, rng.permutation(np.arange(2500) % 10))
    drawn = np.stack([synthdigits._draw(int(label), rng) for label in labels[:5]])
    shipped = sheet[:32, : 5 * 32].reshape(32, 5, 32, 3).transpose(1, 0, 2, 3)
    assert np.abs(drawn.astype(int) - shipped).mean() < 8


def _edges(x):
    """Strength of edges in four directions on an 8x8 grid, (N, 256): blind to color and polarity."""
    gray = x.mean(1, keepdim=True)
    across = gray[..., 1:, 1:] - gray[..., 1:, :-1]
    down = gray[..., 1:, 1:] - gray[..., :-1, 1:]
    maps = torch.cat([across, down, across + down, across - down], 1).abs()
    features = avg_pool2d(maps, 4, ceil_mode=True).flatten(1)
    return features / features.norm(dim=1, keepdim=True)


def test_a_linear_classifier_learns_the_shipped_digits():
    train, test = (
        load_digits("synthdigits", "train", with_labels=True, upper_bound=True)[:],
        load_digits("synthdigits", "test")[:],
    )
    a, b = _edges(train["x"]), _edges(test["x"])
    weights = torch.linalg.solve(a.T @ a + 0.1 * torch.eye(a.shape[1]), a.T @ one_hot(train["y"], 10).float())
    accuracy = (b @ weights).argmax(1).eq(test["y"]).float().mean()
    assert accuracy > 0.6  # chance is 0.1
