"""Random textures: shapes, ranges, the named stream, and that they are what the papers write."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from configs import workload
from fedlab.data.images.episodes import EpisodeDataset
from fedlab.data.images.texture import (
    KERNELS,
    TEXTURES,
    pro_rand_conv,
    rand_conv,
    randomize_texture,
    textured,
)
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


IMAGE_WORKLOADS = ("camvid", "digits", "fewshot", "image_folder", "images", "pacs")


@pytest.mark.parametrize("name", IMAGE_WORKLOADS)
def test_every_image_workload_can_give_its_source_textures(name):
    bare = {} if name in ("fewshot", "images") else {f"{name}.augment": False}
    plain, changed = workload(name, **bare), workload(name, **bare, **{f"{name}.texture": "pro_randconv"})

    def read(task, partition, split):
        with seeded("read"):
            return task.data(partition, split)[:3]["x"]

    assert plain.texture == "off"
    assert read(changed, None, "train").shape == read(plain, None, "train").shape
    assert not torch.equal(read(changed, None, "train"), read(plain, None, "train"))
    assert torch.equal(read(changed, None, "test"), read(plain, None, "test"))
    assert torch.equal(read(changed, 0, "train"), read(plain, 0, "train"))


def test_a_data_set_of_episodes_stays_one():
    data = EpisodeDataset({"x": torch.rand(40, 3, 8, 8), "y": torch.arange(40) % 4})
    assert isinstance(textured(data, "randconv"), EpisodeDataset)
    assert textured(data, "off") is data
