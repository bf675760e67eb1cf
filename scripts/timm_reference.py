"""Print what timm's MLP-Mixers do to given numbers, for tests/fedlab/models/timm_1_0_31.json.

timm asks for packages that nothing else here needs, so it lives in an environment of its own, with fedlab beside it:
``pip install timm==1.0.31``, then ``python scripts/timm_reference.py > FILE``. With ``--whole`` it prints the largest
difference between its logits and ours for the whole table at full depth.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor

from fedlab.models.mixer import SHAPES, Mixer, MixerShape, from_timm

CASES = {  # image size, classes, shape
    "S/32": (224, 1000, SHAPES["S/32"]),  # at full depth
    **{f"{name}, two layers": (224, 16, shape._replace(depth=2)) for name, shape in SHAPES.items()},
    "32 pixels": (32, 10, MixerShape(4, 24, 3, 12, 96)),
}


def filled(shape: tuple[int, ...], number: int) -> Tensor:
    """Weights that every version of torch makes alike: sines, as large as a layer's first weights; vectors near 1."""
    values = torch.sin(torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64) * (1 + number / 7))
    if len(shape) == 1:
        return (1 + values / 2).float()
    return (values.view(shape) / torch.Size(shape[1:]).numel() ** 0.5).float()


def images(size: int) -> Tensor:
    """Two images in [-1, 1]."""
    return torch.sin(torch.arange(2 * 3 * size * size, dtype=torch.float64) ** 1.5).view(2, 3, size, size).float()


def theirs(size: int, classes: int, shape: MixerShape) -> MlpMixer:
    """Timm's network of a shape."""
    return MlpMixer(
        num_classes=classes,
        img_size=size,
        patch_size=shape.patch,
        num_blocks=shape.depth,
        embed_dim=shape.width,
        mlp_ratio=(shape.tokens / shape.width, shape.channels / shape.width),
    ).eval()


def weights(model: MlpMixer) -> Mapping[str, Tensor]:
    """The same weights for every model of these names and shapes."""
    return {name: filled(tuple(own.shape), n) for n, (name, own) in enumerate(model.state_dict().items())}


@torch.no_grad()
def reference() -> dict[str, object]:
    """Parameters by name with and without head, and for each case timm's arrays and logits."""
    found: dict[str, object] = {}
    with torch.device("meta"):
        for name, shape in SHAPES.items():
            counts = [sum(p.numel() for p in theirs(224, classes, shape).parameters()) for classes in (1000, 0)]
            found.setdefault("parameters", {})[name] = counts  # type: ignore[index]
    for name, (size, classes, shape) in CASES.items():
        with torch.device("meta"):
            model = theirs(size, classes, shape)
        model.load_state_dict(weights(model), assign=True)
        arrays = [[name, list(own.shape)] for name, own in model.state_dict().items()]
        logits = model(images(size))[:, :16]
        found[name] = {"size": size, "classes": classes, "shape": shape, "arrays": arrays, "logits": logits.tolist()}
    return found


@torch.no_grad()
def whole() -> None:
    """Every name at full depth: largest logit, largest difference."""
    for name, shape in SHAPES.items():
        with torch.device("meta"):
            model, ours = theirs(224, 1000, shape), Mixer(1000, 224, shape).eval()
        model.load_state_dict(weights(model), assign=True)
        from_timm(ours, model.state_dict())
        x = images(224)
        a, b = model(x), ours(x)
        print(f"{name}: largest logit {float(a.abs().max()):.3f}, largest difference {float((a - b).abs().max()):.1e}")


if __name__ == "__main__":
    whole() if "--whole" in sys.argv else print(json.dumps(reference()))
