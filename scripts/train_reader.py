"""Train the classifier whose features generated digits are compared in: python scripts/train_reader.py [STEPS].

Reads the full sets in FEDLAB_DATA. It writes fedlab/data/embedded/digit_reader.npz, float16, and prints the test
accuracy of what it wrote on each domain. Training images come from the training files alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from fedlab.data.digits import datasets
from fedlab.evaluation import digit_labels
from fedlab.models import digit_classifier
from fedlab.seeds import deterministic, seeded

DOMAINS = {"mnist": 0.5, "usps": 0.1, "optdigits": 0.1, "mnist_m": 0.15, "synthdigits": 0.15}  # share of a batch
BATCH, PEAK = 128, 4e-3


def moved(x: torch.Tensor) -> torch.Tensor:
    """Images turned, scaled and shifted a little, each its own way."""
    count = len(x)
    angle, scale = (torch.rand(count) - 0.5) * 0.4, 1 + (torch.rand(count) - 0.5) * 0.3
    shift = (torch.rand(count, 2) - 0.5) * 0.2
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2) / scale[:, None, None]
    grid = affine_grid(torch.cat([turn, shift[:, :, None]], 2), list(x.shape), align_corners=False)
    return grid_sample(x, grid, padding_mode="border", align_corners=False)


def main(steps: int) -> None:
    """Train, write, test."""
    root = Path(os.environ["FEDLAB_DATA"])
    parts = {name: datasets.load_digits(name, "train", root, with_labels=True, upper_bound=True) for name in DOMAINS}
    with deterministic(1), seeded("digit reader"):
        reader = digit_classifier.DigitClassifier().train()
        optimizer = torch.optim.AdamW(reader.parameters(), PEAK, weight_decay=1e-2)
        plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, steps)
        for step in range(steps):
            drawn = [part.sample_batch(round(BATCH * DOMAINS[name])) for name, part in parts.items()]
            x = moved(digit_classifier.preprocess(torch.cat([batch["x"] for batch in drawn])))
            loss = cross_entropy(reader(x), torch.cat([batch["y"] for batch in drawn]), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plan.step()
            if step % 200 == 199:
                print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    state = {name: t.half() if t.is_floating_point() else t for name, t in reader.state_dict().items()}
    np.savez_compressed(digit_labels.WEIGHTS, **{name: t.numpy() for name, t in state.items()})
    print(f"{digit_labels.WEIGHTS.name}: {digit_labels.WEIGHTS.stat().st_size:,} bytes")
    for name in DOMAINS:
        test = datasets.load_digits(name, "test", root)
        right = sum(
            int((digit_labels.classify_digits(batch["x"])[1] == batch["y"]).sum()) for batch in test.batches(500)
        )
        print(f"{name}: {right / len(test):.4f} of {len(test):,} test images")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1500)
