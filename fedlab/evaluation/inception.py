"""The published FID, in Inception's features, where its weights are on this machine.

torchmetrics and torch-fidelity are no dependencies of fedlab, and their weights (91 MB) come from the network: they are
used where both are installed, and nothing else is ever reported in their place.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's copy of TensorFlow's network of FID


def unavailable_reason() -> str:
    """Return why FID cannot be computed here; empty when it can."""
    missing = [name for name in ("torchmetrics", "torch_fidelity") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} cannot be imported; pip install torchmetrics torch-fidelity"
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    return "" if path.is_file() else f"its weights are not at {path}; put torch-fidelity's {WEIGHTS} there"


def fid(generated: Tensor, real: Tensor) -> float:
    """Return the FID of images (n, 1 or 3, size, size) in [-1, 1] against real ones, by torchmetrics."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(normalize=True)
    for images, are_real in ((real, True), (generated, False)):
        for part in torch.split((images + 1) / 2, 50):
            metric.update(part.expand(-1, 3, -1, -1), real=are_real)
    return float(metric.compute())
