"""Permutations of pixels: what moves, what stays together."""

from __future__ import annotations

import pytest
import torch

from benchmarks.permutations import KINDS, permute_pixels, pixel_permutation
from fedlab.errors import ConfigError

X = torch.arange(3 * 8 * 8).view(1, 3, 8, 8)


def patches(x):
    """(batch, tokens, channels, pixels of a patch) of patches of 4."""
    return x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3).flatten(3).transpose(1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_move_with_all_their_channels_and_none_is_lost(kind):
    order = pixel_permutation(kind, 8, 4, seed=0)
    assert sorted(order.tolist()) == list(range(64))
    moved = permute_pixels(X, order)
    assert moved.dtype == X.dtype
    assert torch.equal(moved[:, 1:], moved[:, :1] + torch.tensor([64, 128]).view(1, 2, 1, 1))
    assert torch.equal(moved, X) == (kind == "plain")


def test_patches_keep_their_pixels_and_share_one_order_within():
    plain = patches(X)[0, :, 0]  # (tokens, pixels)
    for kind, stay in (("within patches", True), ("patches", False)):
        moved = patches(permute_pixels(X, pixel_permutation(kind, 8, 4, seed=1)))[0, :, 0]
        sets = [set(token.tolist()) for token in moved]
        assert all(set(token.tolist()) in sets for token in plain)
        assert (sets == [set(token.tolist()) for token in plain]) == stay
        assert ((moved - moved[:, :1]) == (moved - moved[:, :1])[0]).all()
    scattered = patches(permute_pixels(X, pixel_permutation("pixels", 8, 4, seed=1)))[0, :, 0]
    assert all(set(token.tolist()) not in [set(t.tolist()) for t in scattered] for token in plain)


def test_a_seed_fixes_it_whatever_the_stream():
    torch.manual_seed(1)
    first = pixel_permutation("pixels", 8, 4, seed=5)
    torch.manual_seed(2)
    assert torch.equal(pixel_permutation("pixels", 8, 4, seed=5), first)
    assert not torch.equal(pixel_permutation("pixels", 8, 4, seed=6), first)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="no arrangement of pixels 'patch'; did you mean 'patches'"):
        pixel_permutation("patch", 8, 4, 0)
    with pytest.raises(ConfigError, match="images of 9 pixels cannot be cut into patches of 4"):
        pixel_permutation("patches", 9, 4, 0)
