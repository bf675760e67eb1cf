"""TrivialAugment, change by change against torchvision's v2 functions with the strengths of its own table."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from fedlab.data.images import trivial_augment
from fedlab.data.images.trivial_augment import CHANGES, MOVES, SIGNED_STRENGTHS, STRENGTHS

SIZE = 32
TABLE = v2.TrivialAugmentWide._AUGMENTATION_SPACE  # kinds, their magnitudes by number, whether these have signs
REFERENCES = {
    "Identity": lambda image, magnitude: image,
    "ShearX": lambda image, magnitude: shear(image, [degrees(magnitude), 0.0]),
    "ShearY": lambda image, magnitude: shear(image, [0.0, degrees(magnitude)]),
    "TranslateX": lambda image, magnitude: functional.affine(image, 0.0, [int(magnitude), 0], 1.0, [0.0, 0.0]),
    "TranslateY": lambda image, magnitude: functional.affine(image, 0.0, [0, int(magnitude)], 1.0, [0.0, 0.0]),
    "Rotate": lambda image, magnitude: functional.rotate(image, magnitude),
    "Brightness": lambda image, magnitude: functional.adjust_brightness(image, 1 + magnitude),
    "Color": lambda image, magnitude: functional.adjust_saturation(image, 1 + magnitude),
    "Contrast": lambda image, magnitude: functional.adjust_contrast(image, 1 + magnitude),
    "Sharpness": lambda image, magnitude: functional.adjust_sharpness(image, 1 + magnitude),
    "Posterize": lambda image, magnitude: functional.posterize(image, int(magnitude)),
    "Solarize": lambda image, magnitude: functional.solarize(image, 255 * magnitude),
    "AutoContrast": lambda image, magnitude: functional.autocontrast(image),
    "Equalize": lambda image, magnitude: functional.equalize(image),
}


def degrees(slope):
    return math.degrees(math.atan(slope))


def shear(image, angles):
    return functional.affine(image, 0.0, [0, 0], 1.0, angles, center=[0, 0])


def magnitude_of(kind, number, sign):
    """The magnitude that torchvision has for a strength, by its number."""
    magnitudes, signed = TABLE[kind]
    values = magnitudes(STRENGTHS, SIZE, SIZE)
    return 0.0 if values is None else float(values[number]) * (sign if signed else 1)


@pytest.fixture
def images():
    """Bytes (5, 3, size, size): noise, a dark one, one of few values, a half of one value, and a plain one."""
    torch.manual_seed(0)
    found = torch.randint(0, 256, (5, 3, SIZE, SIZE), dtype=torch.uint8)
    found[1] = found[1] // 4
    found[2] = found[2] // 64 * 60
    found[3, :, : SIZE // 2] = 200
    found[4] = 7
    return found


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("number", [0, 1, 7, 14, 30])
@pytest.mark.parametrize("kind", list(TABLE))
def test_a_change_is_torchvisions(images, kind, number, sign):
    strength = torch.full((len(images),), sign * number / (STRENGTHS - 1))
    x = images.float() / 255
    if kind in MOVES:
        table = trivial_augment.move_table(SIZE).view(-1, SIGNED_STRENGTHS, 2, 3)
        matrix = table[list(MOVES).index(kind), STRENGTHS - 1 + sign * number]
        ours, within = trivial_augment.move(x, matrix.expand(len(images), -1, -1)), 1e-4
    else:
        ours, within = CHANGES[kind](x, strength[:, None, None, None]), 2.0  # theirs rounds to bytes, twice for some
    theirs = REFERENCES[kind](images, magnitude_of(kind, number, sign))
    assert (255 * ours - theirs).abs().max() <= within


def test_kinds_are_those_of_torchvision():
    assert [*MOVES, *CHANGES] == list(TABLE) == list(REFERENCES)


def test_images_keep_their_places_and_all_kinds_come_up(images):
    """A batch of one image many times: each result is that image after one of the changes."""
    x = 2 * (images[:1].float() / 255).expand(2000, -1, -1, -1) - 1
    torch.manual_seed(1)
    out = trivial_augment.trivial_augment(x)
    torch.manual_seed(1)
    kinds = torch.randint(len(TABLE), (2000,))
    assert out.shape == x.shape and out.min() >= -1 - 1e-5 and out.max() <= 1 + 1e-5
    counts = kinds.bincount(minlength=len(TABLE))
    assert counts.min() > 100
    same = (out - x).abs().amax((1, 2, 3)) < 1e-5
    assert same[kinds == 0].all()
    equal = [*MOVES, *CHANGES].index("Equalize")
    wanted = 2 * functional.equalize(images[0]).float() / 255 - 1
    torch.testing.assert_close(out[kinds == equal], wanted.expand(counts[equal], -1, -1, -1), atol=1e-5, rtol=0)


def test_the_same_stream_changes_alike_and_no_image_is_no_error(images):
    x = 2 * (images.float() / 255) - 1
    torch.manual_seed(5)
    first = trivial_augment.trivial_augment(x)
    torch.manual_seed(5)
    assert torch.equal(first, trivial_augment.trivial_augment(x))
    assert trivial_augment.trivial_augment(x[:0]).shape == (0, 3, SIZE, SIZE)
