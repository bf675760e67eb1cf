"""MLP-Mixer: the paper's table, timm's logits, the symmetry under permutations of pixels, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.permutations import permute_pixels, pixel_permutation
from fedlab.errors import ConfigError, DataError, IncompatibleWeightsError
from fedlab.models.convnet import ConvNet
from fedlab.models.mixer import SHAPES, SMALL, Mixer, MixerShape, from_timm, permute_patch_weights
from fedlab.seeds import seeded

TIMM = json.loads((Path(__file__).parent / "timm_1_0_31.json").read_text(encoding="utf-8"))
CASES = [name for name in TIMM if name != "parameters"]
TOY = MixerShape(4, 24, 2, 12, 48)


def count(module):
    return sum(weight.numel() for weight in module.parameters())


# --- the table, and timm ---


@pytest.mark.parametrize("name", list(SHAPES))
def test_every_mixer_has_the_papers_size_and_timms_number_of_parameters(name):
    millions = {"S/32": 19, "S/16": 18, "B/32": 60, "B/16": 59, "L/32": 206, "L/16": 207, "H/14": 431}[name]
    with torch.device("meta"):
        model = Mixer(1000, 224, SHAPES[name])
    assert [count(model), count(model.features)] == TIMM["parameters"][name]
    assert count(model.features) == pytest.approx(millions * 1e6, abs=0.6e6)  # as table 1 rounds it


def test_the_two_sizes_that_a_public_recipe_for_cifar10_is_quoted_with():
    assert [count(Mixer(10, 32, SMALL[name])) for name in ("small", "cifar")] == [673_418, 1_132_170]


def filled(shape, number):
    """As scripts/timm_reference.py fills its arrays."""
    values = torch.sin(torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64) * (1 + number / 7))
    if len(shape) == 1:
        return (1 + values / 2).float()
    return (values.view(shape) / torch.Size(shape[1:]).numel() ** 0.5).float()


def timms(case):
    """Ours and the weights that timm's had, by timm's names."""
    with torch.device("meta"):
        model = Mixer(case["classes"], case["size"], MixerShape(*case["shape"]))
    return model.eval(), {name: filled(shape, number) for number, (name, shape) in enumerate(case["arrays"])}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_timms(name):
    case = TIMM[name]
    size, wanted = case["size"], torch.tensor(case["logits"])
    x = torch.sin(torch.arange(2 * 3 * size * size, dtype=torch.float64) ** 1.5).view(2, 3, size, size).float()
    logits = from_timm(*timms(case))(x)[:, :16]
    assert wanted.std() > 0.1  # so that 1e-5 is small
    assert torch.allclose(logits, wanted, rtol=0, atol=1e-5)


# --- permuted pixels ---


def curve(model, x, y, steps=40):
    """Losses of Adam on the same batches, float64."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(steps):
        rows = slice(8 * (step % 4), 8 * (step % 4) + 8)
        loss = cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def permuted_curves(kind, move_weights):
    """The loss curve on images as they are, and on rearranged ones with the same or with moved initial weights."""
    with seeded("symmetry"):
        x, y = torch.randn(32, 3, 16, 16, dtype=torch.float64), torch.randint(5, (32,))
        model, other = Mixer(5, 16, TOY).double(), Mixer(5, 16, TOY).double()
    order = pixel_permutation(kind, 16, 4, seed=3)
    state = model.state_dict()
    other.load_state_dict(permute_patch_weights(state, order, TOY) if move_weights else state)
    return curve(model, x, y), curve(other, permute_pixels(x, order), y)


@pytest.mark.parametrize("kind", ["within patches", "patches"])
def test_a_mixer_learns_from_permuted_patches_as_from_whole_ones(kind):
    """Permute the images and the initial weights: the loss curves coincide to float error."""
    plain, permuted = permuted_curves(kind, move_weights=True)
    assert plain[-1] < plain[0] - 0.1
    assert (plain - permuted).abs().max() < 1e-9


def test_with_weights_that_did_not_move_the_curves_differ():
    plain, permuted = permuted_curves("patches", move_weights=False)
    assert (plain - permuted).abs().max() > 1e-3


def test_weights_for_permuted_images_give_the_same_logits_and_a_trained_mixer_is_not_resistant():
    with seeded("symmetry"):
        model, x = Mixer(5, 16, TOY), torch.randn(4, 3, 16, 16)
        torch.nn.init.normal_(model.head.weight)
    order, plain = pixel_permutation("patches", 16, 4, seed=1), model(x)
    moved = Mixer(5, 16, TOY)
    moved.load_state_dict(permute_patch_weights(model.state_dict(), order, TOY))
    assert torch.allclose(moved(permute_pixels(x, order)), plain, atol=1e-5)
    assert not torch.allclose(model(permute_pixels(x, order)), plain, atol=1e-2)


def test_no_weights_move_so_that_pixels_may_go_anywhere():
    with pytest.raises(ConfigError, match="goes from one patch to several; no permutation of weights undoes that"):
        permute_patch_weights(Mixer(5, 16, TOY).state_dict(), pixel_permutation("pixels", 16, 4, seed=0), TOY)


# --- what is refused ---


def test_a_mixer_starts_with_a_head_of_zeros():
    assert not Mixer(3, 32, MixerShape(8, 16, 1, 8, 32))(torch.randn(2, 3, 32, 32)).any()


@pytest.mark.parametrize(("size", "patch", "near"), [(30, 8, 32), (224, 14, None), (32, 14, 28), (4, 8, 8)])
def test_patches_tile_the_image_or_are_refused(size, patch, near):
    shape = MixerShape(patch, 16, 1, 8, 32)
    if near is None:
        assert Mixer(3, size, shape)
        return
    with pytest.raises(ConfigError, match=rf"{size} pixels cannot be cut into patches of {patch}.*example {near} pix"):
        Mixer(3, size, shape)


def test_images_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"for images \(3, 16, 16\) got \(3, 32, 32\); the number of patches"):
        Mixer(5, 16, TOY)(torch.zeros(1, 3, 32, 32))
    with pytest.raises(DataError, match=r"got \(1, 16, 16\)"):
        Mixer(5, 16, TOY)(torch.zeros(1, 1, 16, 16))


def test_a_checkpoint_of_another_model_is_refused():
    _, weights = timms(TIMM["32 pixels"])
    shape = MixerShape(*TIMM["32 pixels"]["shape"])
    with pytest.raises(
        IncompatibleWeightsError, match="not timm's weights of this Mixer: 2 arrays without a match.*'head.bias'"
    ):
        from_timm(Mixer(7, 32, shape), weights)
    with pytest.raises(IncompatibleWeightsError, match="the first is 'blocks.2"):
        from_timm(Mixer(10, 32, shape._replace(depth=2)), weights)
    with pytest.raises(IncompatibleWeightsError, match="without a match, the first is"):
        from_timm(Mixer(10, 32, shape), ConvNet(10).state_dict())
