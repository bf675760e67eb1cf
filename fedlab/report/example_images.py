"""Example images of a client's test data, with what its predictor takes them for."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedlab.data.dataset import ArrayDataset
from fedlab.report.confusions import BATCH

Array = NDArray[Any]

EACH = 6  # images that are classified rightly, and as many wrongly
LOOKED_AT = 300  # images among which they are chosen, evenly spread over the test data
SIDE = 96  # pixels, at most


@dataclass(frozen=True)
class ExampleImage:
    """One image as an address that needs no other file, with true and predicted class in words."""

    title: str
    address: Markup
    wrong: bool


@torch.no_grad()
def choose_examples(predictor: nn.Module, data: ArrayDataset) -> dict[str, Array]:
    """Return some images that are classified rightly and the most confident mistakes.

    Returns
    -------
    dict
        ``example_images`` (n, height, width, 3), uint8; ``example_classes`` (n, 2), true and predicted;
        ``example_scores`` (n,), probabilities of the predicted class. Empty where the inputs are no images with one
        label each.
    """
    some = data.subsample(LOOKED_AT)
    if not {"x", "y"} <= data.columns.keys() or not len(some):
        return {}
    if not _are_images(some[:1]["x"]) or some[:1]["y"].ndim != 1:
        return {}
    scores, labels = [], []
    for batch in some.batches(BATCH):
        p = predictor(batch["x"])
        if p.ndim != 2 or len(p) != len(batch["y"]):
            return {}
        scores.append(p.softmax(1))
        labels.append(batch["y"].long())
    y = torch.cat(labels)
    best, predicted = torch.cat(scores).max(1)
    right, wrong = (torch.nonzero(mask)[:, 0] for mask in (predicted == y, predicted != y))
    spread = torch.linspace(0, len(right) - 1, min(EACH, len(right))).long()
    confident = wrong[best[wrong].argsort(descending=True, stable=True)][:EACH]
    chosen = torch.cat([right[spread], confident])
    return {
        "example_images": np.stack([_pixels(some[i : i + 1]["x"][0]) for i in chosen.tolist()]),
        "example_classes": torch.stack([y, predicted], 1)[chosen].numpy(),
        "example_scores": best[chosen].numpy(),
    }


def _are_images(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) > 1


def _pixels(x: Tensor) -> Array:
    """Return an image (channels, height, width) as uint8 (height, width, 3), from its darkest value to its lightest."""
    x = x.detach().cpu().float()
    if max(x.shape[1:]) > SIDE:
        scale = SIDE / max(x.shape[1:])
        x = interpolate(x[None], scale_factor=scale, mode="area")[0]
    low, high = x.min(), x.max()
    x = (255 * (x - low) / (high - low).clamp_min(1e-9)).round().expand(3, -1, -1)
    pixels: Array = x.permute(1, 2, 0).to(torch.uint8).numpy()
    return pixels


def example_images(images: Array, classes: Array, scores: Array, names: Sequence[str]) -> list[ExampleImage]:
    """Return images (n, height, width, 3) for a page; ``names`` has the classes' names, or nothing."""
    found = []
    for pixels, (true, predicted), score in zip(images, classes, scores, strict=True):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", optimize=True)
        address = Markup("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())
        a, b = (names[label] if 0 <= label < len(names) else str(label) for label in (true, predicted))
        words = f"{a}, {100 * score:.0f} %" if true == predicted else f"{a} taken for {b}, {100 * score:.0f} %"
        found.append(ExampleImage(words, address, bool(true != predicted)))
    return found
