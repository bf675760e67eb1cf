"""DDPM's U-Net: counted against the paper, its parts by hand, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from fedlab.errors import ConfigError, DataError
from fedlab.models.unet import SHAPES, Attention, Downsample, UNet, UNetShape, level_embedding
from fedlab.seeds import seeded


def count(module):
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(
    ("name", "channels", "size", "parameters"),
    [
        ("cifar10", 3, 32, 35_746_307),
        ("small", 1, 32, 1_623_169),
        ("medium", 1, 28, 6_469_889),
        ("tiny", 1, 28, 280_177),
        ("quick", 1, 28, 703_076),
    ],
)
def test_sizes(name, channels, size, parameters):
    """The first is the paper's 35.7 M."""
    with torch.device("meta"):
        assert count(UNet(channels, size, SHAPES[name])) == parameters


NARROW = UNetShape(8, (1, 2), 1, (4,), 0.0)


def test_a_small_one_is_counted_by_hand():
    def conv(inputs, outputs, size=3):
        return size * size * inputs * outputs + outputs

    def block(inputs, outputs):
        level = 32 * outputs + outputs
        around = conv(inputs, outputs, 1) if inputs != outputs else 0
        return 2 * inputs + conv(inputs, outputs) + level + 2 * outputs + conv(outputs, outputs) + around

    attention = 2 * 16 + 4 * conv(16, 16, 1)
    wanted = 8 * 32 + 32 + 32 * 32 + 32 + conv(1, 8)
    wanted += block(8, 8) + conv(8, 8) + block(8, 16) + attention
    wanted += 2 * block(16, 16) + attention
    wanted += block(16 + 16, 16) + block(16 + 8, 16) + 2 * attention + conv(16, 16)
    wanted += block(16 + 8, 8) + block(8 + 8, 8)
    wanted += 2 * 8 + conv(8, 1)
    assert count(UNet(1, 8, NARROW)) == wanted


def test_patches_are_channels_inside_and_pixels_again_outside():
    """With patches of 2 the network inside sees half the size and four channels for each."""
    with seeded("patches"):
        patched = UNet(1, 16, NARROW._replace(patch=2))
        inside = UNet(4, 8, NARROW)
        inside.load_state_dict(patched.state_dict())
        torch.nn.init.normal_(patched.out.weight)
        inside.out.load_state_dict(patched.out.state_dict())
        x, level = torch.randn(2, 1, 16, 16), torch.tensor([0, 7])
    corners = torch.stack([x[:, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
    found, wanted = patched(x, level), inside(corners, level)
    assert found.shape == x.shape
    for number, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.allclose(found[:, 0, i::2, j::2], wanted[:, number], atol=1e-6)
    with pytest.raises(ConfigError, match="halved 1 times after patches of 2; .*multiples of 4"):
        UNet(1, 18, NARROW._replace(patch=2))


def test_levels_become_sines_and_cosines():
    found = level_embedding(torch.tensor([0, 3]), 4)
    wanted = [[0, 0, 1, 1], [math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)]]
    assert torch.allclose(found, torch.tensor(wanted), atol=1e-6)


def test_attention_is_the_softmax_over_pixels():
    layer, x = Attention(4), torch.randn(2, 4, 2, 3)
    assert torch.equal(layer(x, None), x)  # it starts as nothing
    torch.nn.init.normal_(layer.out.weight)
    h = layer.norm(x)
    query, key, value = (part(h) for part in (layer.query, layer.key, layer.value))
    weights = torch.einsum("bchw,bcij->bhwij", query, key).flatten(3).div(2).softmax(3).view(2, 2, 3, 2, 3)
    wanted = x + layer.out(torch.einsum("bhwij,bcij->bchw", weights, value))
    assert torch.allclose(layer(x, None), wanted, atol=1e-5)


def test_down_halves():
    assert Downsample(4)(torch.zeros(1, 4, 6, 6), None).shape == (1, 4, 3, 3)


def test_it_starts_by_finding_nothing_and_then_sees_level_and_image():
    model, x = UNet(1, 8, NARROW).eval(), torch.randn(2, 1, 8, 8)
    assert not model(x, torch.tensor([0, 1])).any()
    with seeded("weights"):
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    one, other = model(x, torch.tensor([0, 1])), model(x, torch.tensor([0, 500]))
    assert one.shape == x.shape
    assert torch.allclose(one[0], other[0], atol=1e-5)
    assert not torch.allclose(one[1], other[1], atol=1e-3)


def test_an_image_that_cannot_be_halved_is_refused():
    with pytest.raises(ConfigError, match=r"images of 28 pixels cannot be halved 3 times; .*multiples of 8"):
        UNet(1, 28, SHAPES["cifar10"])
    with pytest.raises(DataError, match=r"images of shape \(3, 8, 8\) came to a U-Net made for \(1, 8, 8\)"):
        UNet(1, 8, NARROW)(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))
