"""MLP-Mixer: patches, then layers that mix tokens and channels in turn, then a mean; no convolution, no attention.

**Source**: Tolstikhin et al., MLP-Mixer: An all-MLP Architecture for Vision, NeurIPS 2021, section 2 and table 1.
``tests/fedlab/models/test_mixer.py`` compares it with timm's ``mlp_mixer``, whose weights :func:`from_timm` takes.

**Departures**: (1) weights of linear layers are drawn by torch's default rule rather than Flax's. (2) Dropout and
stochastic depth are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from fedlab.errors import ConfigError, DataError, IncompatibleWeightsError, plural


class MixerShape(NamedTuple):
    """One column of table 1: patch size in pixels, width C, layers, and the widths D_S and D_C of the two MLPs."""

    patch: int
    width: int
    depth: int
    tokens: int
    channels: int


SHAPES: Mapping[str, MixerShape] = {
    "S/32": MixerShape(32, 512, 8, 256, 2048),
    "S/16": MixerShape(16, 512, 8, 256, 2048),
    "B/32": MixerShape(32, 768, 12, 384, 3072),
    "B/16": MixerShape(16, 768, 12, 384, 3072),
    "L/32": MixerShape(32, 1024, 24, 512, 4096),
    "L/16": MixerShape(16, 1024, 24, 512, 4096),
    "H/14": MixerShape(14, 1280, 32, 640, 5120),
}
SMALL: Mapping[str, MixerShape] = {  # for 32 pixels
    "tiny": MixerShape(8, 96, 3, 32, 192),  # ours: 15 ms a step of 64 on one core
    "small": MixerShape(4, 128, 8, 512, 64),  # this and the next are both quoted for one public recipe for CIFAR-10
    "cifar": MixerShape(4, 128, 8, 64, 512),
}


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Return two linear layers on the last dimension, with a GELU between them."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class MixerBlock(nn.Module):
    """x + MLP over tokens, then x + MLP over channels, each after a layer norm."""

    def __init__(self, tokens: int, shape: MixerShape) -> None:
        super().__init__()
        self.before_tokens = nn.LayerNorm(shape.width, eps=1e-6)
        self.mix_tokens = mlp(tokens, shape.tokens)
        self.before_channels = nn.LayerNorm(shape.width, eps=1e-6)
        self.mix_channels = mlp(shape.width, shape.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, width), unchanged in shape."""
        x = x + self.mix_tokens(self.before_tokens(x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.mix_channels(self.before_channels(x))
        return mixed


class MixerBackbone(nn.Module):
    """All layers before the classifier."""

    def __init__(self, size: int, shape: MixerShape) -> None:
        super().__init__()
        self.size = size
        self.stem = nn.Conv2d(3, shape.width, shape.patch, shape.patch)
        self.layers = nn.Sequential(*(MixerBlock((size // shape.patch) ** 2, shape) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (batch, width) of images (batch, 3, size, size).

        Raises
        ------
        DataError
            For images of another size.
        """
        if x.shape[1:] != (3, self.size, self.size):
            raise DataError(
                f"a Mixer for images (3, {self.size}, {self.size}) got {tuple(x.shape[1:])}; the number of patches is "
                "part of its weights: resize the images, or make a Mixer for their size"
            )
        x = self.stem(x).flatten(2).transpose(1, 2).contiguous()  # (batch, tokens, width); else each layer copies it
        pooled: Tensor = self.norm(self.layers(x)).mean(1)
        return pooled


class Mixer(nn.Module):
    """The backbone and a linear classifier with zero initial weights.

    Parameters
    ----------
    classes
        Number of classes.
    size
        Pixels a side; the number of tokens, (size / patch)^2, is part of the weights.
    shape
        See :class:`MixerShape`.

    Raises
    ------
    ConfigError
        When patches do not tile the image.
    """

    def __init__(self, classes: int, size: int, shape: MixerShape) -> None:
        super().__init__()
        check_patch_size(size, shape)
        self.features = MixerBackbone(size, shape)
        self.head = nn.Linear(shape.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, size, size)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def check_patch_size(size: int, shape: MixerShape) -> None:
    """Check that patches tile images of ``size`` pixels a side.

    Raises
    ------
    ConfigError
        When they do not, with the nearest size that they do.
    """
    if size % shape.patch or size < shape.patch:
        near = max(1, round(size / shape.patch)) * shape.patch
        raise ConfigError(
            f"images of {size} pixels cannot be cut into patches of {shape.patch}; take a multiple of it, "
            f"for example {near} pixels"
        )


NAMES = {  # ours to timm's
    "features.stem": "stem.proj",
    "features.norm": "norm",
    "head": "head",
    "before_tokens": "norm1",
    "before_channels": "norm2",
    "mix_tokens.0": "mlp_tokens.fc1",
    "mix_tokens.2": "mlp_tokens.fc2",
    "mix_channels.0": "mlp_channels.fc1",
    "mix_channels.2": "mlp_channels.fc2",
}


def from_timm(model: Mixer, weights: Mapping[str, Tensor]) -> Mixer:
    """Load weights of timm's ``mixer_...`` of the same size into the model, without copying them, and return the model.

    Raises
    ------
    IncompatibleWeightsError
        When they are another model's.
    """
    wanted = {}
    for name, own in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module.startswith("features.layers."):
            number, _, rest = module.removeprefix("features.layers.").partition(".")
            wanted[f"blocks.{number}.{NAMES[rest]}.{kind}"] = name, own.shape
        else:
            wanted[f"{NAMES[module]}.{kind}"] = name, own.shape
    foreign = sorted(
        name
        for name in wanted.keys() | weights.keys()
        if name not in wanted or name not in weights or weights[name].shape != wanted[name][1]
    )
    if foreign:
        raise IncompatibleWeightsError(
            f"these are not timm's weights of this Mixer: {plural(len(foreign), 'array')} without a match, the first "
            f"is {foreign[0]!r}; take the checkpoint of the same name, number of classes and image size"
        )
    model.load_state_dict({wanted[name][0]: tensor for name, tensor in weights.items()}, assign=True)
    return model


def permute_patch_weights(weights: Mapping[str, Tensor], order: Tensor, shape: MixerShape) -> dict[str, Tensor]:
    """Return weights whose outputs for permuted images are those of the given weights for the images themselves.

    Columns of the stem follow the pixels of a patch; columns of the first layer, and rows of the second, of every MLP
    over tokens follow the patches. All are drawn alike and no optimizer here looks beyond an element, so an untrained
    Mixer cannot tell the two kinds of images apart.

    Parameters
    ----------
    weights
        State of a :class:`Mixer`.
    order
        As in ``benchmarks.permutations``: (size * size,).
    shape
        Shape of the Mixer.

    Raises
    ------
    ConfigError
        When pixels of one patch go to several, or change places differently from patch to patch.
    """
    size, patch = round(len(order) ** 0.5), shape.patch
    side = size // patch
    came = order.view(side, patch, side, patch).transpose(1, 2).reshape(side * side, patch * patch)
    row, column = came // size, came % size
    patches = row // patch * side + column // patch  # (tokens, pixels of a patch)
    pixels = row % patch * patch + column % patch
    if (patches != patches[:, :1]).any() or (pixels != pixels[:1]).any():
        raise ConfigError(
            "this arrangement of pixels goes from one patch to several; no permutation of weights undoes that"
        )
    moved = dict(weights)
    for name, tensor in weights.items():
        if name == "features.stem.weight":
            moved[name] = tensor.flatten(2)[:, :, pixels[0]].view(tensor.shape)
        elif name.endswith("mix_tokens.0.weight"):
            moved[name] = tensor[:, patches[:, 0]]
        elif name.endswith(("mix_tokens.2.weight", "mix_tokens.2.bias")):
            moved[name] = tensor[patches[:, 0]]
    return moved
