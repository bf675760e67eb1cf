"""The classifier of digits that ships with the package, read once: features and labels of images.

``scripts/train_reader.py`` trains it and prints its test accuracy on each domain; docs/explanation/diffusion.md has
the numbers.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlab.errors import DataError
from fedlab.models.digit_classifier import DigitClassifier, preprocess

WEIGHTS = Path(__file__).parents[1] / "data" / "embedded" / "digit_reader.npz"


@lru_cache(maxsize=1)
def load_classifier(path: Path = WEIGHTS) -> DigitClassifier:
    """The trained reader, in float32 and evaluation mode.

    Raises
    ------
    DataError
        When its file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            state = {name: torch.from_numpy(archive[name]) for name in archive.files}
        with torch.random.fork_rng():  # fresh weights, which are replaced, draw from nobody's stream
            reader = DigitClassifier()
        reader.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    except Exception as error:  # a damaged file can fail in a reader in nearly any way
        raise DataError(f"the digit reader {path} cannot be read ({error}); reinstall fedlab") from error
    return reader.eval().requires_grad_(False)


@torch.no_grad()
def classify_digits(x: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Features (images, 64) and labels (images,) that the shipped reader sees in images, see :func:`preprocess`."""
    reader = load_classifier()
    features = torch.cat([reader.features(preprocess(part.cpu())) for part in torch.split(x, batch)])
    return features, reader.head(features).argmax(1)
