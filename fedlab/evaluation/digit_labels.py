"""Features and labels of images by the digit classifier that ships with the package, which is read once.

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
    """Return the trained classifier, in float32 and evaluation mode.

    Raises
    ------
    DataError
        When its file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            state = {name: torch.from_numpy(archive[name]) for name in archive.files}
        with torch.random.fork_rng():  # initial weights, which are replaced, must not advance the current stream
            classifier = DigitClassifier()
        classifier.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    except Exception as error:  # a damaged file can fail in a reader in nearly any way
        raise DataError(f"the digit reader {path} cannot be read ({error}); reinstall fedlab") from error
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def classify_digits(x: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Return features (images, 64) and labels (images,) of images (images, 1 or 3, size, size) in [-1, 1]."""
    classifier = load_classifier()
    features = torch.cat([classifier.features(preprocess(part.cpu())) for part in torch.split(x, batch)])
    return features, classifier.head(features).argmax(1)
