"""Random textures: shapes, ranges, the named stream, and that they are what the papers write."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from fedlab.data.images.texture import KERNELS, TEXTURES, pro_rand_conv, rand_conv, randomize_texture
from fedlab.seeds import seeded


@pytest.fixture
def x():
    with seeded("images"):
        return 2 * torch.rand(4, 3, 12, 12) - 1


@pytest.mark.parametrize("kind", list(TEXTURES))
def test_a_texture_is_a_function_of_the_stream_and_changes_the_images(kind, x):
    found = []
    for name in ("a", "a", "b"):
        with seeded(name):
            found.append(randomize_texture(kind, x))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert found[0].shape == x.shape and torch.isfinite(found[0]).all()
    assert not torch.equal(found[0], x)


def test_off_leaves_them_alone(x):
    assert randomize_texture("off", x) is x


def test_randconv_is_one_kernel_mixed_with_the_image(x):
    for seed in range(8):
        with seeded(seed):
            found = rand_conv(x)
        with seeded(seed):  # the same draws, by hand
            size = KERNELS[int(torch.randint(4, ()))]
            kernel = torch.randn(3, 3, size, size) / (3 * size * size) ** 0.5
            a = torch.rand(())
        torch.testing.assert_close(found, a * conv2d(x, kernel, padding=size // 2) + (1 - a) * x)


def test_equal_images_of_a_batch_get_equal_textures(x):
    with seeded("textures"):
        found = pro_rand_conv(x[:1].expand(3, -1, -1, -1))
    torch.testing.assert_close(found[0], found[2])


def test_pro_randconv_is_bounded_and_forgets_contrast(x):
    for seed in range(8):
        with seeded(seed):
            found = pro_rand_conv(x)
        with seeded(seed):
            scaled = pro_rand_conv(3 * x)
        assert found.abs().max() <= 1
        torch.testing.assert_close(found, scaled, atol=2e-3, rtol=0)  # standardized after each pass
